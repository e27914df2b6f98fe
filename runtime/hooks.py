"""Hooks for a trainer: publish after a step, and drive the engines that receive meanwhile.

A `Publisher` is one trainer rank's end. Every rank has one and publishes at the same steps; the one
that drives engines has them, too: they are paused, updated while all ranks publish, flushed and
resumed. Nothing of the trainer's is touched: neither its process groups nor its random numbers.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from tranship.compiler.diff import Change, Weight, diff_manifests
from tranship.runtime.bind import bind, location
from tranship.runtime.errors import StalePlanError
from tranship.runtime.live import live_tensors
from tranship.runtime.messages import MAX_VERSION
from tranship.runtime.session import Live, Sender, require_own_plan
from tranship.runtime.step import StepStats
from tranship.runtime.transports.protocol import Transport
from tranship.schema.codec import load
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location, report_first
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan
from tranship.schema.records import Declaration


class EngineControl(Protocol):
    """How an engine is driven. A method returns when it is done, and raises if it fails."""

    @property
    def name(self) -> str:
        """What messages call the engine."""
        ...

    def pause(self) -> None:
        """Stop generating."""
        ...

    def update(self, version: int) -> None:
        """Receive a version on all ranks; called in a thread while the senders publish it."""
        ...

    def flush(self) -> None:
        """Forget what was computed with earlier weights."""
        ...

    def resume(self) -> None:
        """Go on generating."""
        ...


Failures = Sequence[tuple[EngineControl, BaseException]]


class PublishError(DiagnosticError):
    """A version was not published, or an engine does not serve it; engines stay paused (TS876)."""


class Publisher:
    """One trainer rank's end, bound at first use.

    Args:
        plan: A committed plan file.
        manifest: The committed manifest of the trainer that the plan was compiled from.
        model: This rank's model, or what `live_tensors` found in several.
        connect: Connects this rank with all others; called at first use.
        rank: This rank among the senders.
        engines: What this rank drives: all engines on one rank, none on the others.
        declare: Declares what the model holds, as `fsdp_declaration` does; compared with the
            manifest before anything is bound.

    Raises:
        DiagnosticError: TS100 to TS118, a file cannot be read.
    """

    def __init__(
        self,
        plan: str | Path,
        manifest: str | Path,
        model: nn.Module | Live,
        connect: Callable[[], Transport],
        rank: int,
        engines: Sequence[EngineControl] = (),
        declare: Callable[[], Declaration] | None = None,
    ) -> None:
        self._plan = load(plan, TransferPlan).value
        self._manifest = load(manifest, Manifest).value
        self._model = model
        self._connect = connect
        self._rank = rank
        self._engines = tuple(engines)
        self._declare = declare
        self._sender: Sender | None = None
        self._closed = False

    @property
    def version(self) -> int:
        """The last version that all engines have received, or 0."""
        committed = self._sender.committed_version if self._sender is not None else None
        return committed or 0

    def publish(self, version: int | None = None) -> StepStats:
        """Publish the weights as they are now, and have the engines go on with them.

        Args:
            version: its number, if it is not the last one's plus 1. Engines that outlived a trainer
                take none that is not above what they have.

        Raises:
            StalePlanError: the model or its manifest is not what the plan is of (TS811, TS875); no
                engine has been paused.
            DiagnosticError: as `Sender.bind`; no engine has been paused, unless all have met.
            DistributedError, TransportError: on a rank without engines, as `Sender.publish`.
            PublishError: on the rank that drives engines; they stay paused.
            ValueError: the publisher is closed, or there are no such versions.
        """
        number = self.version + 1 if version is None else version
        if self._closed or not 0 <= number <= MAX_VERSION:
            reason = "the publisher is closed" if self._closed else f"there is no version {number}"
            raise ValueError(reason)
        if self._sender is None:
            self._check()
        self._drive(lambda engine: engine.pause(), _NOT_PAUSED, number)
        stats = self._publish(number)
        self._drive(lambda engine: engine.flush(), _NOT_FLUSHED, number)
        self._drive(lambda engine: engine.resume(), _NOT_RESUMED, number)
        return stats

    def as_step_hook(self, every: int = 1) -> Callable[[Optimizer, Any, Any], None]:
        """Return what `Optimizer.register_step_post_hook` takes: it publishes every so many steps.

        Raises:
            ValueError: `every` is below 1.
        """
        _require_positive(every)
        steps = 0

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            nonlocal steps
            del optimizer, args, kwargs
            steps += 1
            if steps % every == 0:
                self.publish()

        return after_step

    def close(self) -> None:
        """Give back what binding took; the publisher is of no use any more."""
        self._closed = True
        if self._sender is not None:
            self._sender.close()

    def _live(self) -> Live:
        return live_tensors(self._model) if isinstance(self._model, nn.Module) else self._model

    def _check(self) -> None:
        """Find what is wrong here before anybody is stopped or waits."""
        require_own_plan(self._plan, self._manifest, Side.SENDER, self._rank)
        if self._declare is not None:
            _require_declared(self._manifest, self._declare(), self._rank)
        bind(self._live(), self._manifest, Side.SENDER, self._rank)

    def _bound(self) -> Sender:
        if self._sender is None:
            self._sender = Sender.bind(
                self._plan, self._manifest, self._live(), self._connect(), self._rank
            )
        return self._sender

    def _publish(self, number: int) -> StepStats:
        """Publish while the engines receive: it takes both."""
        wait = _begin(self._engines, lambda engine: engine.update(number))
        try:
            stats = self._bound().publish(number)
        except Exception as error:
            failed = wait()
            if not self._engines:
                raise
            found = (*_own(error, number, self._rank), *_told(failed, _NOT_UPDATED, number))
            raise PublishError(_paused(found, self._engines)) from error
        self._require(wait(), _NOT_UPDATED, number)
        return stats

    def _drive(self, act: Callable[[EngineControl], None], what: str, number: int) -> None:
        self._require(_begin(self._engines, act)(), what, number)

    def _require(self, failed: Failures, what: str, number: int) -> None:
        if failed:
            left = _left_paused(self._engines, [engine for engine, _ in failed], what)
            raise PublishError(_paused(_told(failed, what, number), left))


_NOT_PAUSED = "was not paused for version {}"
_NOT_UPDATED = "was not updated to version {}"
_NOT_FLUSHED = "has version {}, and its cache was not flushed"
_NOT_RESUMED = "has version {}, and was not resumed"


def _left_paused(
    engines: Sequence[EngineControl], failed: Sequence[EngineControl], what: str
) -> Sequence[EngineControl]:
    """Return the engines that do not serve once some have failed: nothing is undone."""
    if what == _NOT_RESUMED:
        return failed
    if what == _NOT_PAUSED:
        return [engine for engine in engines if engine not in failed]
    return engines


def _begin(
    engines: Sequence[EngineControl], act: Callable[[EngineControl], None]
) -> Callable[[], Failures]:
    """Act on all engines, each in a thread of its own; what is returned waits for them."""
    pool = ThreadPoolExecutor(max(len(engines), 1))
    acts = [(engine, pool.submit(act, engine)) for engine in engines]
    pool.shutdown(wait=False)

    def wait() -> Failures:
        return [(engine, error) for engine, done in acts if (error := done.exception())]

    return wait


def _own(error: Exception, number: int, rank: int) -> tuple[Diagnostic, ...]:
    """Tell what failed on this rank."""
    if isinstance(error, DiagnosticError):
        return error.diagnostics
    message = f"version {number} was not published: {type(error).__name__}: {error}"
    return (Diagnostic("TS877", message, location(Side.SENDER, rank)),)


def _told(failed: Failures, what: str, number: int) -> tuple[Diagnostic, ...]:
    """Tell which engines failed to do something (TS876)."""
    return tuple(
        Diagnostic("TS876", f"{what.format(number)}: {error}", Location(engine.name))
        for engine, error in failed
    )


def _paused(found: Iterable[Diagnostic], engines: Sequence[EngineControl]) -> Iterator[Diagnostic]:
    """Say with every finding which engines do not serve now."""
    if not engines:
        yield from found
        return
    names = ", ".join(engine.name for engine in engines)
    advice = f"paused until a later version succeeds, or they are started again: {names}"
    for finding in found:
        yield replace(finding, help=f"{finding.help}; {advice}" if finding.help else advice)


def _require_declared(manifest: Manifest, live: Declaration, rank: int) -> None:
    """Compare what the model holds with what the manifest declares for its rank.

    Raises:
        StalePlanError: TS875, once for everything that makes other bytes move.
    """
    own = _without_others(expand(manifest, [rank]), live)
    # How ranks are numbered by axes, and which release has declared them, moves no byte.
    same = replace(live, axes=own.axes, framework=own.framework)
    changes = [
        change
        for change in diff_manifests(fold(own), fold(same))
        if change.weight is not Weight.NOTE
    ]
    if changes:
        where = location(Side.SENDER, rank)
        raise StalePlanError(report_first(changes, partial(_changed, where), where.file))


def _without_others(own: Declaration, live: Declaration) -> Declaration:
    """Leave out tensors that only other ranks hold: a rank need not declare them.

    A manifest names the tensors of all ranks for each.
    """
    known = {piece.tensor for record in own.buffers for piece in record.pieces}
    known |= {tensor.name for tensor in live.tensors}
    return replace(own, tensors=tuple(t for t in own.tensors if t.name in known))


def _changed(where: Location, change: Change) -> Diagnostic:
    members = f" ({change.members})" if change.members else ""
    found = "missing" if change.new is None else change.new
    declared = "not declared" if change.old is None else f"declared is {change.old}"
    return Diagnostic(
        code="TS875",
        message=f"{change.subject}{members}: {change.kind} is {found}, {declared}",
        at=where,
        expected=change.old,
        found=change.new,
        help="declare the trainer anew, compile, and review the plan",
    )


def _require_positive(every: int) -> None:
    if every < 1:
        raise ValueError(f"every {every} steps cannot be done")


def hugging_face_callback(publisher: Publisher, every: int = 1) -> Any:
    """Return a `transformers.TrainerCallback` that publishes every so many optimizer steps.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: `every` is below 1.
    """
    _require_positive(every)

    def on_step_end(own: object, args: object, state: Any, control: object, **_: object) -> None:
        del own, args, control
        if state.global_step % every == 0:
            publisher.publish()

    base: type = importlib.import_module("transformers").TrainerCallback
    return type("TranshipCallback", (base,), {"on_step_end": on_step_end})()
