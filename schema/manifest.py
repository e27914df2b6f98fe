"""The manifest: everything that one side of a transfer declares about its tensors and memory.

The models hold what the JSON holds. Rules that a JSON Schema cannot state are in `check.py`;
what a family stands for, rank by rank, is in `expand.py`.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tranship.schema import indexset
from tranship.schema.dtypes import DType

MANIFEST_FORMAT = "tranship.manifest/1"

MAX_DIM = 2**40
MAX_RANK_COUNT = 2**20


class Frozen(BaseModel):
    """Base of all declared data: immutable, strict about types, closed to unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=False)


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""An axis, index or table name."""

TemplateText = Annotated[str, Field(min_length=1, max_length=512)]
"""A buffer or tensor name with index expressions in braces."""

IndexSetText = Annotated[str, Field(pattern=indexset.PATTERN, max_length=4096)]
"""An index set: `0..3`, `0..92:2` (last included) or `0,3,7..9`."""

ExpressionText = Annotated[str, Field(min_length=1, max_length=512)]
LiteralInt = Annotated[int, Field(ge=-(2**62), le=2**62)]
IntExpression = LiteralInt | ExpressionText
"""An integer, or an expression over indices, axes and `rank`."""

Size = Annotated[int, Field(ge=0, le=MAX_DIM)]
Reason = Annotated[str, Field(min_length=1, max_length=1024)]


class Side(StrEnum):
    """Which end of a transfer a manifest describes."""

    SENDER = "sender"
    RECEIVER = "receiver"


class Kind(StrEnum):
    """How a framework holds a buffer."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    ATTRIBUTE = "attribute"


class Part(StrEnum):
    """What a piece holds: a tensor's values (or codes), or the scales of its blocks."""

    VALUE = "value"
    SCALE = "scale"


class Axis(Frozen):
    """A named mesh axis: rank `r` has coordinate `r // stride % size` on it."""

    name: Name
    size: Annotated[int, Field(ge=1, le=MAX_RANK_COUNT)]
    stride: Annotated[int, Field(ge=1, le=MAX_RANK_COUNT)]


class TensorFamily(Frozen):
    """Logical tensors alike but for the indices in their names.

    `tied_to` names the tensor of the same shape whose value this one always has.
    """

    name: TemplateText
    indices: dict[Name, IndexSetText] = {}
    shape: tuple[Size, ...]
    tied_to: TemplateText | None = None


class Plain(Frozen):
    """Values stored as they are, in the buffer's dtype."""

    kind: Literal["plain"] = "plain"


class Scaled(Frozen):
    """Codes that stand for `code * scale`, one scale per block of the logical tensor.

    `block` has one entry per tensor dim: a number of elements, or "all" for the whole dim.
    `scale` names the buffer that holds the scales. `scale_values` says which it may hold.
    """

    kind: Literal["scaled"]
    block: tuple[Annotated[int, Field(ge=1, le=MAX_DIM)] | Literal["all"], ...]
    scale: TemplateText
    scale_values: Literal["any", "power_of_two"] = "any"


class Scale(Frozen):
    """Scales of the buffer named `of`."""

    kind: Literal["scale"]
    of: TemplateText


Encoding = Annotated[Plain | Scaled | Scale, Field(discriminator="kind")]


class Transfer(Frozen):
    """The buffer takes part: read on the sender, written on the receiver."""

    kind: Literal["transfer"] = "transfer"


class Derived(Frozen):
    """A named recipe recomputes the buffer from others on the same rank after an update."""

    kind: Literal["derived"]
    recipe: Annotated[str, Field(min_length=1, max_length=128)]
    inputs: Annotated[tuple[TemplateText, ...], Field(min_length=1)]


class ConstantBuffer(Frozen):
    """No update changes the buffer; the reason says why."""

    kind: Literal["constant"]
    reason: Reason


class Alias(Frozen):
    """The buffer is the memory of another one."""

    kind: Literal["alias"]
    of: TemplateText


Role = Annotated[Transfer | Derived | ConstantBuffer | Alias, Field(discriminator="kind")]


class Piece(Frozen):
    """A box of a logical tensor and where it lies in the buffer.

    The box holds elements `start + step * k` with `0 <= k < extent` per dim; element `k` lies at
    buffer element `offset + sum(k * strides)`. With part `scale` the box counts blocks of the
    grid whose block 0 starts at logical element `origin`. `indices` are this piece's own, besides
    those of its buffer. The piece exists on ranks whose coordinates equal `at`.
    """

    tensor: TemplateText
    part: Part = Part.VALUE
    indices: dict[Name, IndexSetText] = {}
    at: dict[Name, IntExpression] = {}
    start: tuple[IntExpression, ...]
    extent: tuple[IntExpression, ...]
    step: tuple[Annotated[int, Field(ge=1, le=MAX_DIM)], ...] | None = None
    offset: IntExpression = 0
    strides: tuple[IntExpression, ...] | None = None
    origin: tuple[IntExpression, ...] | None = None


class Fill(Frozen):
    """A strided region of the buffer that belongs to no logical tensor.

    With `value` a receiver writes that value there; with `reason` nobody reads or writes it.
    """

    indices: dict[Name, IndexSetText] = {}
    at: dict[Name, IntExpression] = {}
    offset: IntExpression = 0
    sizes: tuple[IntExpression, ...]
    strides: tuple[IntExpression, ...]
    value: Annotated[int, Field(ge=0, le=1)] | None = None
    reason: Reason | None = None


class BufferFamily(Frozen):
    """Buffers alike but for the indices in their names, on the ranks that `at` selects.

    `strides` default to those of a contiguous row-major tensor.
    """

    name: TemplateText
    indices: dict[Name, IndexSetText] = {}
    at: dict[Name, IntExpression] = {}
    dtype: DType
    shape: tuple[IntExpression, ...]
    strides: tuple[IntExpression, ...] | None = None
    kind: Kind = Kind.PARAMETER
    role: Role = Transfer()
    encoding: Encoding = Plain()
    layout: Name = "row_major"
    pieces: tuple[Piece, ...] = ()
    fills: tuple[Fill, ...] = ()


class Framework(Frozen):
    """Which software holds the memory, for people and for diffs.

    `options` are the framework's own, under its own names, as far as they decide what is held.
    `traced` are the ranks whose own code told what they hold, if it was derived for the others.
    """

    name: Annotated[str, Field(min_length=1, max_length=128)]
    version: Annotated[str, Field(max_length=128)] = ""
    options: dict[Name, LiteralInt | bool | Annotated[str, Field(max_length=512)]] = {}
    traced: IndexSetText | None = None


class ModuleFamily(Frozen):
    """Modules of the checkpoint alike but for the indices in their names."""

    name: TemplateText
    indices: dict[Name, IndexSetText] = {}


class Quantization(Frozen):
    """How weights are quantized, and which modules are not.

    `unquantized` lists the modules whose tensors have two dims or more and lie in no scaled buffer.
    """

    method: Annotated[str, Field(min_length=1, max_length=128)]
    unquantized: tuple[ModuleFamily, ...] = ()


class Manifest(Frozen):
    """Everything that one side declares. No addresses, hosts or times.

    `ranks` is the index set of the ranks that this manifest speaks for; a manifest of one rank is
    merged with the others' before it is compiled.
    """

    format: Literal["tranship.manifest/1"]
    side: Side
    framework: Framework | None = None
    world_size: Annotated[int, Field(ge=1, le=MAX_RANK_COUNT)]
    ranks: IndexSetText | None = None
    axes: tuple[Axis, ...] = ()
    tables: dict[Name, tuple[LiteralInt, ...]] = {}
    quantization: Quantization | None = None
    tensors: tuple[TensorFamily, ...]
    buffers: tuple[BufferFamily, ...]
