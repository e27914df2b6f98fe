"""Start the processes of an example, run tranship's commands, and tell what happens."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from examples.live.place import HOST, TIMEOUT, VERSIONS, WORLD, told

HERE = Path(__file__).parent


class Failure(Exception):
    """A process or a command failed; the text says which and why."""


@dataclass
class Deployment:
    """A folder for files, a store to meet at, and the processes that were started."""

    folder: Path
    store: TCPStore
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict[str, Any])

    def start(self, module: str, count: int) -> None:
        """Start `count` ranks of a module; what they print goes into files."""
        for rank in range(count):
            name = f"{module} {rank}"
            arguments = [f"{rank}", f"{self.folder}", f"{self.store.port}"]
            with (self.folder / f"{name}.log").open("w") as log:
                self.running[name] = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=HERE.parents[1],
                    stdout=log,
                    stderr=log,
                )

    def wait(self, event: str, side: str, count: int) -> list[Any]:
        """Wait until all ranks of a side have told of an event; return what, in rank order.

        Raises:
            Failure: a process ended with an error, or the time is over.
        """
        deadline = time.monotonic() + TIMEOUT
        while not self.store.check([f"{event}/{side}/{rank}" for rank in range(count)]):
            for name, process in self.running.items():
                if process.poll():
                    raise Failure(f"{name} failed\n{self._log(name)}")
            if time.monotonic() > deadline:
                raise Failure(f"{event!r} was not told within {TIMEOUT:.0f} seconds")
            time.sleep(0.05)
        return [told(self.store, event, side, rank) for rank in range(count)]

    def command(self, text: str, lines: int = 1) -> None:
        """Run a command of tranship's as a user would; print it, and the first lines of its output.

        Raises:
            Failure: it exits with another code than 0.
        """
        print(f"   $ tranship {text}", flush=True)
        command = [sys.executable, "-m", "tranship", *text.split()]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(done.stdout + done.stderr)
        for line in done.stdout.splitlines()[:lines]:
            print(f"   {line.rstrip()}", flush=True)

    def end(self) -> None:
        """Wait for the processes, which are done.

        Raises:
            Failure: one of them ended with an error.
        """
        for name, process in self.running.items():
            if process.wait(TIMEOUT):
                raise Failure(f"{name} failed\n{self._log(name)}")

    def kill(self) -> None:
        """End what still runs."""
        for process in self.running.values():
            process.kill()
            process.wait()

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]


def run(trainer: str, kind: str, prepare: Callable[[Deployment], None] | None = None) -> int:
    """Run an example; return 0 if all bytes are equal, else 1.

    Args:
        trainer: the module that is a rank of the trainer.
        kind: what the output calls the trainer.
        prepare: makes what the trainer's ranks read.
    """
    limit = timedelta(seconds=TIMEOUT)
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=limit)
    with TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder), store)
        for name in ("config.json", "live.toml"):
            shutil.copy(HERE / name, folder)
        try:
            if prepare is not None:
                prepare(deployment)
            compile_plan(deployment, trainer, kind)
            return 0 if publish(deployment) else 1
        except Failure as failure:
            print(failure, file=sys.stderr)
            return 1
        finally:
            deployment.kill()


def compile_plan(deployment: Deployment, trainer: str, kind: str) -> None:
    """Have both sides declare what they hold, and compile and verify the plan."""
    print(f"1. {WORLD.senders} trainer ranks declare what they hold: {kind}", flush=True)
    deployment.start(trainer, WORLD.senders)
    for rank, found in enumerate(deployment.wait("declared", "trainer", WORLD.senders)):
        print(f"   rank {rank}: {found['buffers']} buffers")
    deployment.command("merge trainer.0.json trainer.1.json -o trainer.json")
    print("2. What the engine needs is traced: SGLang's own code, FP8, tp 2")
    deployment.command("trace sglang -c config.json -a qwen3_moe --tp 2 -o engine.json")
    print("3. The plan is compiled, and verified by other code")
    deployment.command("compile live.toml", lines=2)
    deployment.command("verify live.toml")


def publish(deployment: Deployment) -> bool:
    """Have the trainer publish while the engine receives; tell whether every check held."""
    print(f"4. {WORLD.receivers} SGLang ranks start; the trainer steps and publishes, twice")
    deployment.start("examples.live.engine", WORLD.receivers)
    deployment.store.set("plan", json.dumps("compiled"))
    equal = True
    for version in VERSIONS:
        for rank, found in enumerate(
            deployment.wait(f"published-{version}", "trainer", WORLD.senders)
        ):
            print(f"   version {version}: trainer rank {rank} sent {found['sent']:,} bytes")
        name = f"version-{version}.safetensors"
        for rank, found in enumerate(deployment.wait(name, "engine", WORLD.receivers)):
            print(f"   version {version}: engine rank {rank}: {found['text']}", flush=True)
            equal = equal and found["equal"]
    deployment.end()
    return equal
