"""What ranks tell one another before and after the bytes of a step: JSON of a fixed shape."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tranship.runtime.bind import location
from tranship.runtime.transports.protocol import Gathered, World
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.manifest import Frozen, Side
from tranship.schema.plan import Digest

REPLAY_FORMAT = "tranship.replay/1"
"""Names the layout of messages, their digests, and what ranks tell one another."""

MAX_VERSION = 2**62
Version = Annotated[int, Field(ge=0, le=MAX_VERSION)]

ALL_ROUNDS = -1
"""Stands for all rounds together where a round is named."""

Seat = tuple[Side, int]


class Finding(Frozen):
    """A diagnostic on its way; the rank that sends it is its place."""

    code: Annotated[str, Field(pattern=r"^TS\d{3}$")]
    message: str
    help: str | None = None


class Hello(Frozen):
    """What a rank is about to do, before the first byte.

    `side` and `rank` are those of the program that it replays. All ranks must name the same plan,
    manifests and version; `committed` is the last version that the rank has.
    """

    format: Literal["tranship.replay/1"] = REPLAY_FORMAT
    side: Side
    rank: int
    plan: Digest
    sender_manifest: Digest
    receiver_manifest: Digest
    version: Version
    committed: Version | None
    findings: tuple[Finding, ...]


class Delivery(Frozen):
    """Digests of what passed between a rank and `peer` in one round, or in `ALL_ROUNDS`.

    `wire` is of what a sender packed, or of what came to a receiver; `written` of what a receiver
    has where it was to be written. A sender adds which tensors, or families, a round's message
    has a part of. Where both digests are of a sample, `whole` is of all that the receiver has.
    """

    round: int
    peer: int
    wire: str
    written: str | None = None
    whole: str | None = None
    tensors: tuple[str, ...] = ()


class Outcome(Frozen):
    """What became of a step on a rank.

    A receiver may have packed for a sender on its GPU, `packed_for`: `packed` is of that.
    """

    deliveries: tuple[Delivery, ...]
    findings: tuple[Finding, ...]
    packed: tuple[Delivery, ...] = ()
    packed_for: int | None = None


class _Envelope(BaseModel):
    format: str


M = TypeVar("M", bound=BaseModel)


def read_all(
    model: type[M], texts: Gathered, world: World
) -> tuple[dict[Seat, M], list[Diagnostic]]:
    """Read what every rank said: the messages of those that said something, and who did not.

    Findings are TS835 to TS837, each at the rank that it is about.
    """
    messages: dict[Seat, M] = {}
    findings: list[Diagnostic] = []
    for member, text in enumerate(texts):
        seat = world.seat(member)
        if text is None:
            message = f"{seat[0]} rank {seat[1]} was not heard of in time"
            findings.append(Diagnostic("TS836", message, location(*seat)))
            continue
        try:
            messages[seat] = model.model_validate_json(text)
        except ValidationError as error:
            findings.append(_unreadable(text, seat, error))
    return messages, findings


def _unreadable(text: str, seat: Seat, error: ValidationError) -> Diagnostic:
    try:
        form = _Envelope.model_validate_json(text).format
    except ValidationError:
        form = REPLAY_FORMAT
    if form != REPLAY_FORMAT:
        message = f"{seat[0]} rank {seat[1]} speaks {form!r}, this rank {REPLAY_FORMAT!r}"
        return Diagnostic("TS835", message, location(*seat))
    reason = f"{error.errors()[0]['msg']}".lower()
    message = f"a control message of {seat[0]} rank {seat[1]} cannot be read: {reason}"
    return Diagnostic("TS837", message, location(*seat))


def told(diagnostic: Diagnostic) -> Finding:
    """Return a diagnostic as it travels."""
    return Finding(code=diagnostic.code, message=diagnostic.message, help=diagnostic.help)


def failed(stage: str, error: Exception) -> list[Finding]:
    """Return what to tell of a stage that raised `error`: its diagnostics, or TS838."""
    if isinstance(error, DiagnosticError):
        return [told(diagnostic) for diagnostic in error.diagnostics]
    message = f"{stage} failed: {type(error).__name__}: {error}"
    return [Finding(code="TS838", message=message)]


def reported(said: Mapping[Seat, tuple[Finding, ...]]) -> Iterator[Diagnostic]:
    """Yield what ranks found on themselves."""
    for seat, findings in said.items():
        yield from reported_at(location(*seat), findings)


def reported_at(where: Location, findings: Iterable[Finding]) -> Iterator[Diagnostic]:
    """Yield findings as diagnostics of one place."""
    for finding in findings:
        yield Diagnostic(finding.code, finding.message, where, help=finding.help)
