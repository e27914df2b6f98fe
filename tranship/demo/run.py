"""Run the demo: start trainer and engine, compile what they declare, and tell what happens."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tranship.demo.config import FSDP_SIZE, TP_SIZE
from tranship.demo.process import PLAN, RECEIVER, SENDER, TIMEOUT, VERSIONS

TRANSFER = "demo.transfer.toml"
TRANSFER_TEXT = f"""format = "tranship.transfer/1"
sender = "{SENDER}"
receiver = "{RECEIVER}"

[options]
formula = "divide"
staging_bytes = 4194304
"""

Event = Mapping[str, Any]


class DemoError(Exception):
    """A process of the demo failed; carries what to print."""


@dataclass
class Processes:
    """The demo's four processes, and what they have reported but nobody has read yet."""

    folder: Path
    running: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict[str, Any])
    events: "queue.Queue[Event]" = field(default_factory=lambda: queue.Queue[Event]())

    def start(self, module: str, rank: int, port: int) -> None:
        """Start rank `rank` of `tranship.demo.MODULE`."""
        name = f"{module} {rank}"
        arguments = [str(rank), str(self.folder), str(port)]
        command = [sys.executable, "-m", f"tranship.demo.{module}", *arguments]
        with (self.folder / f"{module}.{rank}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.running[name] = process
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.events.put(cast("Event", json.loads(line)))

    def wait(self, event: str, count: int, **facts: object) -> list[Event]:
        """Wait until `count` ranks have reported `event`, in rank order.

        Raises:
            DemoError: a process ended with an error, or the time is over.
        """
        found: list[Event] = []
        deadline = time.monotonic() + TIMEOUT
        while len(found) < count:
            try:
                report = self.events.get(timeout=0.2)
            except queue.Empty:
                self._check(deadline)
                continue
            wanted = report["event"] == event and all(report[k] == v for k, v in facts.items())
            found += [report] if wanted else []
            if not wanted:
                self.events.put(report)
        return sorted(found, key=lambda report: cast("int", report["rank"]))

    def _check(self, deadline: float) -> None:
        for name, process in self.running.items():
            if process.poll():
                log = (self.folder / f"{name.replace(' ', '.')}.log").read_text()
                raise DemoError(f"{name} failed with exit code {process.returncode}\n{log[-4000:]}")
        if time.monotonic() > deadline:
            raise DemoError(f"nothing was reported for {TIMEOUT:.0f} seconds")

    def stop(self) -> None:
        """End what still runs."""
        for process in self.running.values():
            process.kill()
            process.wait()


def main() -> int:
    """Run the whole demo; the exit code is 0 if every byte of the engine is right, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    with TemporaryDirectory(prefix="tranship-demo-") as name, _processes(Path(name)) as processes:
        try:
            right = _run(console, processes)
        except DemoError as error:
            Console(stderr=True, highlight=False).print(str(error), markup=False)
            return 1
    console.print(f"\n{time.monotonic() - started:.0f} seconds in all")
    return 0 if right else 1


@contextmanager
def _processes(folder: Path) -> Generator[Processes]:
    processes = Processes(folder)
    try:
        yield processes
    finally:
        processes.stop()


def _run(console: Console, processes: Processes) -> bool:
    timeout = timedelta(seconds=TIMEOUT)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    _head(console, "1. Two trainer ranks (FSDP2, BF16) and two engine ranks (tp2, FP8) start")
    for rank in range(FSDP_SIZE):
        processes.start("trainer", rank, store.port)
    for rank in range(TP_SIZE):
        processes.start("engine", rank, store.port)
    declared = processes.wait("declared", FSDP_SIZE + TP_SIZE)
    _head(console, "2. Each declares what it holds; manifests are merged, compiled and verified")
    for report in sorted(declared, key=lambda r: (r["side"] != "sender", r["rank"])):
        who = f"{report['side']} rank {report['rank']}"
        console.print(f"{who}: {report['buffers']} buffers in {report['file']}")
    _compile(console, processes.folder)
    store.set("plan", "compiled")
    _head(console, "3. Train, replay the plan, generate: three times")
    for version in VERSIONS:
        published = processes.wait("published", FSDP_SIZE, version=version)
        received = processes.wait("received", TP_SIZE, version=version)
        _tell_update(console, published, received)
    _head(console, "4. Every byte against an independent reference")
    gathered = processes.wait("gathered", FSDP_SIZE)
    store.set("checkpoint", "written")
    return _tell_comparison(console, gathered, processes.wait("compared", TP_SIZE))


def _head(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def _compile(console: Console, folder: Path) -> None:
    """Do what a user does, with the command line."""
    (folder / TRANSFER).write_text(TRANSFER_TEXT)
    for side, target in (("sender", SENDER), ("receiver", RECEIVER)):
        files = sorted(path.name for path in folder.glob(f"{side}.*.manifest.json"))
        _command(console, folder, ["merge", *files, "-o", target])
    _command(console, folder, ["compile", TRANSFER])
    for tensor in ("*.gate_proj.weight", "*.o_proj.weight"):
        _command(console, folder, ["show", PLAN, "--tensor", tensor])


def _command(console: Console, folder: Path, arguments: Sequence[str]) -> None:
    console.print(f"\n[dim]$ tranship {' '.join(arguments)}[/dim]")
    command = [sys.executable, "-m", "tranship", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    console.print(done.stdout.rstrip(), markup=False)
    if done.returncode:
        raise DemoError(done.stderr)


def _tell_update(console: Console, published: Sequence[Event], received: Sequence[Event]) -> None:
    trainer, engine = published[0], received[0]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("trained", f"{trainer['steps']} optimizer steps, loss {trainer['loss']:.3f}")
    table.add_row("sent", _sizes("sender", [report["sent"] for report in published]))
    table.add_row("received", _sizes("engine", [report["received"] for report in received]))
    table.add_row("time", f"trainer {_stages(trainer)}; engine {_stages(engine)}")
    digests = {report["digest"] for report in (*published, *received)}
    same = "the same on all four ranks" if len(digests) == 1 else "DIFFERENT between ranks"
    table.add_row("digest", f"{trainer['digest'][:23]}..., {same}")
    before = "nothing to serve" if engine["before"] is None else f"{engine['before']:.3f}"
    after = f"{engine['after']:.3f}"
    table.add_row("logits", f"distance from the trainer's: {before} before, {after} after")
    right, total = engine["right"]
    table.add_row("generated", f"{right} of {total} tokens as in the training data")
    console.print(f"\n[bold]version {trainer['version']}: {engine['state']}[/bold]")
    console.print(table)


def _sizes(side: str, sizes: Sequence[int]) -> str:
    return ", ".join(f"{side} rank {rank}: {size / 1e6:.2f} MB" for rank, size in enumerate(sizes))


def _stages(report: Event) -> str:
    seconds = cast("Mapping[str, float]", report["seconds"])
    names = [name for name in ("pack", "exchange", "unpack", "digest") if name in seconds]
    return ", ".join(f"{name} {seconds[name] * 1e3:.0f} ms" for name in names)


def _tell_comparison(
    console: Console, gathered: Sequence[Event], compared: Sequence[Event]
) -> bool:
    console.print(
        f"the trainer gathered {gathered[0]['tensors']} tensors (DTensor.full_tensor); each was"
        " quantized whole, and cut as the engine's loader would"
    )
    for report in compared:
        size = f"{report['tensors']} tensors, {report['bytes'] / 1e6:.2f} MB"
        verdict = f"{len(report['different'])} tensors differ: {report['different'][:5]}"
        equal = not report["different"]
        console.print(f"engine rank {report['rank']}: {size}: {'byte-equal' if equal else verdict}")
    return not any(report["different"] for report in compared)
