"""The TransferPlan: typed edges from sender pieces to receiver pieces, their routes and rounds.

The models hold what the JSON holds. What an edge does, rank by rank, is in `moves.py`.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from tranship.schema.dtypes import DType
from tranship.schema.formulas import FormulaName
from tranship.schema.manifest import (
    MAX_DIM,
    MAX_RANK_COUNT,
    Axis,
    Frozen,
    IndexSetText,
    IntExpression,
    LiteralInt,
    Name,
    Reason,
    Side,
    Size,
    TemplateText,
)
from tranship.schema.placement import Seat

PLAN_FORMAT = "tranship.plan/1"

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Op(StrEnum):
    """What an edge does to the value."""

    COPY = "copy"
    CAST = "cast"
    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"
    REQUANTIZE = "requantize"
    AMAX = "amax"


class Place(StrEnum):
    """Which side runs an edge's transform; a copy has none and runs at the sender."""

    SENDER = "sender"
    RECEIVER = "receiver"


class ScaleHalf(Frozen):
    """Where the scales of a half's piece lie: blocks `start` to `start + extent` of the grid."""

    buffer: TemplateText
    dtype: DType
    start: tuple[IntExpression, ...]
    extent: tuple[IntExpression, ...]
    offset: IntExpression
    strides: tuple[IntExpression, ...]


class Half(Frozen):
    """One end of an edge: a piece as its manifest declares it, with every default spelled out.

    `indices` are this end's own, besides the edge's.
    """

    buffer: TemplateText
    dtype: DType
    indices: dict[Name, IndexSetText] = {}
    at: dict[Name, IntExpression] = {}
    start: tuple[IntExpression, ...]
    extent: tuple[IntExpression, ...]
    step: tuple[Annotated[int, Field(ge=1, le=MAX_DIM)], ...] | None = None
    origin: tuple[IntExpression, ...] | None = None
    offset: IntExpression
    strides: tuple[IntExpression, ...]
    block: tuple[Annotated[int, Field(ge=1, le=MAX_DIM)] | Literal["all"], ...] | None = None
    scale: ScaleHalf | None = None


class Window(Frozen):
    """A box of the logical tensor that bounds what one edge moves."""

    start: tuple[IntExpression, ...]
    extent: tuple[IntExpression, ...]


class Edge(Frozen):
    """For every index and every pair of ranks: the sender's box, cut with the receiver's, moves.

    Of the sender ranks that hold the same box, in ascending order, number `turn` modulo their
    count sends; `nearest` keeps only those that the placement puts nearest to the receiver. An
    `amax` edge carries the largest magnitude of every block of the receiver's box, for the
    quantize edges of the same tensor and round; the receiver then goes by these alone, so that
    they must cover its blocks. What a receiver quantizes itself arrives in one round (and window)
    and makes up one box of whole blocks, or has its amax. `tensor` is the receiver's name for it;
    `source` is the sender's where the two are tied.
    """

    op: Op
    place: Place = Place.SENDER
    formula: FormulaName | None = None
    tensor: TemplateText
    source: TemplateText | None = None
    indices: dict[Name, IndexSetText] = {}
    shape: tuple[Size, ...]
    sender: Half
    receiver: Half
    window: Window | None = None
    turn: IntExpression = 0
    nearest: bool = False
    round: IntExpression = 0


class FillEdge(Frozen):
    """A constant written into a region of a receiver buffer, before the first round."""

    op: Literal["fill"] = "fill"
    buffer: TemplateText
    dtype: DType
    indices: dict[Name, IndexSetText] = {}
    at: dict[Name, IntExpression] = {}
    offset: IntExpression
    sizes: tuple[IntExpression, ...]
    strides: tuple[IntExpression, ...]
    value: Annotated[int, Field(ge=0, le=1)]


class DerivedStep(Frozen):
    """A recipe to run on the receiver, in list order, when round `after` is written or later."""

    recipe: str
    buffer: TemplateText
    indices: dict[Name, IndexSetText] = {}
    at: dict[Name, IntExpression] = {}
    inputs: tuple[TemplateText, ...]
    after: LiteralInt


class Round(Frozen):
    """A set of edges that run together in staging slot `slot`.

    A rank may write the slot when its own part of rounds `after` is done: a sender's when it has
    sent, a receiver's when it has unpacked. Every rank goes through the rounds in order.
    """

    slot: Annotated[int, Field(ge=0, le=63)]
    after: tuple[Annotated[int, Field(ge=0, le=2**31)], ...] = ()


class Span(Frozen):
    """Bytes of a rank's staging memory."""

    offset: Size
    size: Size


class Slot(Frozen):
    """Where a round is staged: a region of every sender's memory, and one of every receiver's."""

    sender: Span
    receiver: Span

    def of(self, side: Side) -> Span:
        """The region on ranks of one side."""
        return self.sender if side is Side.SENDER else self.receiver


class Staging(Frozen):
    """Staging memory of one rank: at most `budget` bytes, in slots."""

    budget: Size
    slots: tuple[Slot, ...]


class PlanSide(Frozen):
    """One side's manifest digest, and its axes and tables as the edges use them."""

    manifest: Digest
    world_size: Annotated[int, Field(ge=1, le=MAX_RANK_COUNT)]
    axes: tuple[Axis, ...] = ()
    tables: dict[Name, tuple[LiteralInt, ...]] = {}


class Seats(Frozen):
    """Where both sides' ranks sit, for edges that choose the `nearest` holder."""

    sender: Seat
    receiver: Seat


class UnusedTensor(Frozen):
    """A sender tensor family that no receiver takes, and why that is right."""

    tensor: TemplateText
    reason: Reason


class TransferPlan(Frozen):
    """What the compiler emits and the runtime replays."""

    format: Literal["tranship.plan/1"]
    policy: Digest | None = None
    placement: Digest | None = None
    options: Digest
    sender: PlanSide
    receiver: PlanSide
    seats: Seats | None = None
    schedule: dict[Name, tuple[LiteralInt, ...]] = {}
    staging: Staging
    rounds: tuple[Round, ...]
    edges: tuple[Edge, ...]
    fills: tuple[FillEdge, ...] = ()
    derived: tuple[DerivedStep, ...] = ()
    unused: tuple[UnusedTensor, ...] = ()
