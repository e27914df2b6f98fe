"""A transfer with all its ranks bound, as threads of this process."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from torch import nn

from tests.runtime.transfers import Transfer, bf16_transfer, fp8_transfer
from tranship.runtime.errors import DistributedError
from tranship.runtime.execute import Recipe
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import Transport, World
from tranship.schema.diagnostics import known_codes
from tranship.schema.manifest import Side

bf16, fp8 = cache(bf16_transfer), cache(fp8_transfer)
WORLD = World(senders=2, receivers=2)
Result = StepStats | BaseException


@dataclass
class Job:
    """Both sides of a transfer, bound."""

    transfer: Transfer
    trainers: list[nn.Module]
    engines: list[nn.Module]
    senders: list[Sender]
    receivers: list[Receiver]

    def train(self, version: int) -> None:
        for rank, model in enumerate(self.trainers):
            self.transfer.train(model, rank, version)

    def wrong(self, version: int) -> list[str]:
        """Names of tensors of either engine that are not as they must be."""
        models = enumerate(self.engines)
        return [
            name for rank, model in models for name in self.transfer.wrong(model, rank, version)
        ]

    def step(self, *versions: int) -> list[Result]:
        """Publish and receive; `versions` are those of all ranks, or the one of all."""
        each = versions if len(versions) == WORLD.size else versions * WORLD.size
        calls: list[Callable[[int], StepStats]] = [sender.publish for sender in self.senders]
        calls += [receiver.receive for receiver in self.receivers]
        return at_once([partial(call, v) for call, v in zip(calls, each, strict=True)])


def at_once(calls: Sequence[Callable[[], StepStats]]) -> list[Result]:
    """Make all calls in threads of their own; return results or what was raised."""

    def outcome(call: Callable[[], StepStats]) -> Result:
        try:
            return call()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


Ends = Sequence[Transport]
"""One connection per rank of a side."""


def bound(transfer: Transfer, ends: tuple[Ends, Ends] | None = None, **recipes: Recipe) -> Job:
    trainers, engines = transfer.models(Side.SENDER), transfer.models(Side.RECEIVER)
    ends = ends or connect_locally(WORLD, timeout=30)
    plan = transfer.plan
    senders = [
        Sender.bind(plan, transfer.sender, live_tensors(model), end, rank)
        for rank, (model, end) in enumerate(zip(trainers, ends[0], strict=True))
    ]
    given = {**transfer.recipes, **recipes}
    receivers = [
        Receiver.bind(plan, transfer.receiver, live_tensors(model), end, rank, given)
        for rank, (model, end) in enumerate(zip(engines, ends[1], strict=True))
    ]
    return Job(transfer, trainers, engines, senders, receivers)


def codes(results: Sequence[Result]) -> list[str]:
    """Codes that every rank raised; it must be the same ones, and all ranks."""
    errors = [error for error in results if isinstance(error, DistributedError)]
    assert len(errors) == len(results), results
    found = [[(d.code, d.at, d.message) for d in error.diagnostics] for error in errors]
    assert all(each == found[0] for each in found)
    assert {code for code, _, _ in found[0]} <= set(known_codes())
    return [code for code, _, _ in found[0]]
