"""From the ranks of a live trainer to those of a real engine, by the manifest that is traced of it.

Trainers run in processes of their own. They follow `tests/runtime/trainings.py`.
"""

import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch import Tensor
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tests.models.configs import CONFIGS, FP8, Config, write_config
from tests.runtime.trainings import (
    COMPILED,
    LIMIT,
    VERSIONS,
    check_errors,
    commit,
    merged,
    wait_declared,
)
from tests.sglang.configs import random_values
from tests.sglang.engine_ranks import Job, Report, Scenario
from tests.sglang.load import write_tensors
from tests.sglang.orders import read_reports, step, update
from tests.sglang.test_trace import finding_tests
from tests.sglang.traced_ranks import TRACED, Requests
from tests.sglang.transfers import Sources, bind_order, quantized
from tranship.models.produce import Request, produce
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.schema.expand import expand
from tranship.schema.policy import Policy

TP = 2
"""Ranks of every engine."""

OTHER = 0
"""The version that engines start with."""

RECEIVED = [Report()] * (1 + len(VERSIONS))
"""What a rank reports that has bound, and then held every version as it would load it."""


@dataclass(frozen=True)
class Delivery:
    """A trainer and its engine.

    Attributes:
        name: where they meet.
        folder: what the trainer has written, and what is committed; the engine has a folder in it.
        architecture, changes: a configuration, and what is different in it.
        fp8: whether the engine holds blocks of FP8.
        senders: ranks of the trainer.
        policy: what the plan is allowed.
    """

    name: str
    folder: Path
    architecture: str
    changes: Config
    fp8: bool
    senders: int
    policy: Policy | None = None

    @property
    def engine(self) -> Path:
        """The folder of what the engine reads, and what was traced of it."""
        return self.folder / "engine"

    @property
    def config(self) -> Config:
        """The fields of the engine's config.json."""
        return CONFIGS[self.architecture] | self._changes()

    def _changes(self) -> Config:
        return self.changes | (FP8 if self.fp8 else {})

    def sources(self) -> Sources:
        """Return dtype and shape of what the engine would load."""
        path = str(self.engine / "config.json")
        checkpoint = produce(Request(self.architecture, path, "checkpoint", {}))
        return {b.name: (b.dtype, b.shape) for b in expand(checkpoint).buffers}

    def prepare(self) -> None:
        """Write what the engine starts with."""
        self.engine.mkdir(parents=True)
        write_config(self.engine, self.architecture, **self._changes())
        write_tensors(random_values(on_meta(self.sources()), OTHER), self.checkpoint(OTHER))

    def checkpoint(self, version: int) -> Path:
        """Return where the engine would be given a version."""
        return self.engine / f"{version}.safetensors"

    def write_checkpoint(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Write the checkpoint that the engine would be given of a trainer's whole weights."""
        write_tensors(quantized(weights, self.sources()), self.checkpoint(version))

    def request(self) -> TraceRequest:
        """Ask what the engine holds."""
        return TraceRequest(
            folder=self.engine,
            tp=TP,
            ep=1,
            ranks=tuple(range(TP)),
            arguments={},
            sources=dict(self.sources()),
            output=self.engine,
        )

    def jobs(self, port: int) -> list[Job]:
        """Order all ranks to bind, and to receive every version."""
        files = self.folder / "plan.json", self.folder / "receiver.json"
        steps = [step(bind_order(*files, self.name, port, 60.0))]
        steps += [update(version, self.checkpoint(version)) for version in VERSIONS]
        given = {"config": self.config, "tp": TP, "checkpoint": self.checkpoint(OTHER)}
        how = {"closes": not self.fp8, "inference_mode": self.fp8}
        return [
            Job.model_validate({**given, **how, "rank": rank, "steps": steps}) for rank in range(TP)
        ]


def deliver(
    deliveries: Sequence[Delivery],
    store: TCPStore,
    folder: Path,
    start: Callable[[Delivery], Sequence[BaseProcess]],
) -> list[list[Report]]:
    """Trace engines of one architecture, compile the plans, and let all ranks receive all versions.

    Args:
        deliveries: Prepared.
        store: Where all meet.
        folder: For the reports.
        start: Starts the ranks of a trainer.
    """
    trainers: list[BaseProcess] = []
    with traced(deliveries, folder) as engines:
        try:
            for delivery in deliveries:
                trainers += start(delivery)
            reports = receive(engines, deliveries, store, folder)
            for trainer in trainers:
                trainer.join(LIMIT)
        finally:
            for trainer in trainers:
                trainer.kill()
    for delivery in deliveries:
        check_errors(delivery.folder)
    return reports


@contextmanager
def traced(deliveries: Sequence[Delivery], folder: Path) -> Generator["subprocess.Popen[str]"]:
    """Start to trace engines of one architecture, in a process that will then be their ranks."""
    requests = Requests(requests=[delivery.request() for delivery in deliveries])
    path = folder / "requests.json"
    path.write_text(requests.model_dump_json(), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sglang.traced_ranks", str(path)],
        env=finding_tests(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as engines:
        try:
            yield engines
        finally:
            engines.kill()


def receive(
    engines: "subprocess.Popen[str]", deliveries: Sequence[Delivery], store: TCPStore, folder: Path
) -> list[list[Report]]:
    """Compile the plans when all is declared and traced, and order what engines do then."""
    assert engines.stdout is not None
    assert TRACED in iter(engines.stdout.readline, ""), "tracing has failed"
    for delivery in deliveries:
        keys = PrefixStore(delivery.name, store)
        sender = wait_declared(keys, delivery.senders, delivery.folder)
        commit(delivery.folder, sender, merged(delivery.engine, TP), delivery.policy)
        keys.set(COMPILED, "yes")
    jobs = [job for delivery in deliveries for job in delivery.jobs(store.port)]
    engines.communicate(Scenario(jobs=jobs, output=folder).model_dump_json(), LIMIT)
    return read_reports(folder, len(jobs))
