"""Sessions: a trainer rank publishes each version of its weights, an engine rank receives it.

A session is bound once. Every step then has three parts. First all ranks of both sides agree that
they mean the same plan, the same version and the same world; if they do not, nothing has happened
yet. Then the rounds of the plan are replayed. At last all ranks tell what became of it, and either
all of them commit the version, or none does.

Whatever goes wrong on one rank is raised by all of them, as one `DistributedError`. A rank that
dies between its last word and its commit is beyond what a protocol can promise: the others have
committed then, and the next step does not begin without it.

A session does not verify its plan: that takes both manifests, the policy and the placement, and a
rank has its own manifest only. `tranship verify` proves the plan for the inputs whose digests it
names, and binding refuses a plan that is not of this rank's manifest.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Self

from tranship.runtime.bind import bind, location
from tranship.runtime.errors import StalePlanError
from tranship.runtime.execute import Recipe
from tranship.runtime.live import LiveTensor
from tranship.runtime.messages import Hello, failed, reported_at
from tranship.runtime.program import program
from tranship.runtime.replay import Endpoint, Replay, Replayer
from tranship.runtime.replayers import replayer
from tranship.runtime.step import StepStats, agree, conclude
from tranship.runtime.streams import over
from tranship.runtime.transports.protocol import Transport
from tranship.schema.codec import digest, dump
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import Manifest, Side
from tranship.schema.nearest import nearest
from tranship.schema.plan import TransferPlan

Live = Mapping[str, LiveTensor]


def _prepared(end: Endpoint, own: Replayer, version: int) -> tuple[Diagnostic, ...]:
    """Prepare a step; whatever goes wrong is told to all ranks, which wait to be told."""
    try:
        return own.prepare(version)
    except Exception as error:
        where = location(end.program.side, end.program.rank)
        return tuple(reported_at(where, failed("preparing", error)))


def _replayed(own: Replayer, version: int) -> Replay:
    """Run a step; whatever goes wrong is told to all ranks, which wait to be told."""
    try:
        return own.run(version)
    except Exception as error:
        return Replay(findings=failed("the step", error))


class _Session:
    """What both sides have: a way of replaying, until it is closed.

    That is by `close`, at the end of a `with` block, or once nobody has the session any more:
    memory that stays mapped cannot be given back by the process that it is of.
    """

    _replayer: Replayer | None = None

    def __init__(self, end: Endpoint) -> None:
        self._end = end
        self._replayer = replayer(end)
        self._committed: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # No `weakref.finalize`: it would hold the model for good, and so a session that the model has.
    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # A process that ends maps nothing, and has no GPU to wait for any more.
        if not ending():
            self.close()

    def close(self) -> None:
        """Give back what binding took; not during a step. May be repeated.

        A later step is refused on all ranks.
        """
        own, self._replayer = self._replayer, None
        if own is not None:
            own.close()

    def _agree(self, version: int) -> Replayer:
        """Return what is to run the step on which all ranks have agreed."""
        end, own, committed = self._end, self._replayer, self._committed
        if own is not None:
            agree(end, version, committed, _prepared(end, own, version), own.begin)
            return own
        agree(end, version, committed, over(end, "the session is closed"))
        raise AssertionError("nobody agrees on a step of a session that is closed")


class Sender(_Session):
    """A trainer rank's session. Its weights must not change while it publishes."""

    @classmethod
    def bind(
        cls, plan: TransferPlan, manifest: Manifest, live: Live, transport: Transport, rank: int
    ) -> "Sender":
        """Bind a rank's tensors (`live_tensors`) to the plan, and set its staging memory aside.

        Raises:
            StalePlanError: TS811, the plan is of another manifest.
            DiagnosticError: as `bind.bind`; TS814, the transport cannot send this rank's memory;
                TS815, it connects another number of ranks.
        """
        return cls(_endpoint(Side.SENDER, plan, manifest, live, transport, rank, {}))

    @property
    def committed_version(self) -> int | None:
        """The last version that all receivers have."""
        return self._committed

    def publish(self, version: int) -> StepStats:
        """Send the weights as they are now, while all receivers receive `version`.

        Raises:
            DistributedError: no rank has committed; the same version may be published again.
        """
        own = self._agree(version)
        stats = conclude(self._end, _replayed(own, version), version)
        self._committed = version
        return stats


class State(StrEnum):
    """What a receiver's buffers hold: nothing yet, one whole version, or parts of several."""

    EMPTY = "empty"
    COMMITTED = "committed"
    TORN = "torn"


class Receiver(_Session):
    """An engine rank's session. It may serve only while `serving_allowed` is true."""

    def __init__(self, end: Endpoint) -> None:
        super().__init__(end)
        self._state = State.EMPTY

    @classmethod
    def bind(
        cls,
        plan: TransferPlan,
        manifest: Manifest,
        live: Live,
        transport: Transport,
        rank: int,
        recipes: Mapping[str, Recipe] | None = None,
    ) -> "Receiver":
        """Bind a rank's tensors (`live_tensors`) to the plan, and set its staging memory aside.

        `recipes` are called with the tensor of a derived buffer, to be written in place, and then
        those of its inputs.

        Raises:
            StalePlanError: TS811, the plan is of another manifest.
            DiagnosticError: as `Sender.bind`; TS813, a recipe of the plan is not in `recipes`.
        """
        end = _endpoint(Side.RECEIVER, plan, manifest, live, transport, rank, recipes or {})
        return cls(end)

    @property
    def committed_version(self) -> int | None:
        """The last version that was received whole, even if a later one has torn it since."""
        return self._committed

    @property
    def state(self) -> State:
        """What the buffers hold."""
        return self._state

    @property
    def serving_allowed(self) -> bool:
        """Whether the buffers hold all of one version, and nothing else."""
        return self._state is State.COMMITTED

    def receive(self, version: int) -> StepStats:
        """Receive what all senders publish as `version`, and recompute what is derived from it.

        Raises:
            DistributedError: no rank has committed. Unless it was found before the first byte, the
                state is torn, until a later update succeeds.
        """
        own = self._agree(version)
        self._state = State.TORN
        stats = conclude(self._end, _replayed(own, version), version)
        self._committed, self._state = version, State.COMMITTED
        return stats


def _endpoint(
    side: Side,
    plan: TransferPlan,
    manifest: Manifest,
    live: Live,
    transport: Transport,
    rank: int,
    recipes: Mapping[str, Recipe],
) -> Endpoint:
    require_own_plan(plan, manifest, side, rank)
    bound = bind(live, manifest, side, rank)
    expanded = program(plan, side, rank)
    end = Endpoint(
        plan=plan,
        hello=_hello(plan, side, rank),
        program=expanded,
        bound=bound,
        buffers=tuple(bound.memory(use.name) for use in expanded.buffers),
        packed=tuple(
            bound.packed[use.name] for use in expanded.buffers if use.name in bound.packed
        ),
        recipes=recipes,
        transport=transport,
    )
    findings = list(_unfit(end))
    if findings:
        raise DiagnosticError(findings)
    return end


def _hello(plan: TransferPlan, side: Side, rank: int) -> Hello:
    return Hello(
        side=side,
        rank=rank,
        plan=digest(dump(plan)),
        sender_manifest=plan.sender.manifest,
        receiver_manifest=plan.receiver.manifest,
        version=0,
        committed=None,
        findings=(),
    )


def require_own_plan(plan: TransferPlan, manifest: Manifest, side: Side, rank: int) -> None:
    """Make sure that a plan is of this manifest.

    Raises:
        StalePlanError: TS811, it is of another one.
    """
    expected = (plan.sender if side is Side.SENDER else plan.receiver).manifest
    found = digest(dump(manifest))
    if found != expected:
        finding = Diagnostic(
            code="TS811",
            message=f"the plan is of a {side} manifest with digest {expected}, not {found}",
            at=location(side, rank),
            help="compile the plan anew from this manifest, and review what changed",
        )
        raise StalePlanError([finding])


def _unfit(end: Endpoint) -> Iterator[Diagnostic]:
    """Report what a plan needs that is not here."""
    here = location(end.program.side, end.program.rank)
    world, plan = end.transport.world, end.plan
    if (world.senders, world.receivers) != (plan.sender.world_size, plan.receiver.world_size):
        message = (
            f"the transport connects {world.senders} sender and {world.receivers} receiver ranks,"
            f" the plan {plan.sender.world_size} and {plan.receiver.world_size}"
        )
        yield Diagnostic("TS815", message, here)
    for name in sorted({call.recipe for call in end.program.derived} - set(end.recipes)):
        close = nearest(name, end.recipes)
        advice = f"there is {close[0]!r}" if close else "pass it in `recipes`"
        yield Diagnostic("TS813", f"there is no recipe {name!r}", here, help=advice)
    reason = end.transport.refusal(end.bound.device)
    if reason is not None:
        yield Diagnostic("TS814", reason, here)
