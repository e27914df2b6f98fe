"""What architecture and layout files hold: the models of both kinds of data file."""

from typing import Annotated, Literal

from pydantic import Field

from tranship.schema.manifest import Frozen, Kind, Name, Reason, Side

ARCHITECTURE_FORMAT = "tranship.architecture/1"
LAYOUT_FORMAT = "tranship.layout/1"

Text = Annotated[str, Field(min_length=1, max_length=1024)]
"""An expression, or words for people."""

Number = int | Text
"""A number or an expression."""

Role = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""What a tensor is for, in words that all architectures share; `docs/models.md` lists them."""


class Size(Frozen):
    """A named quantity of a model: a field of config.json, or an expression over earlier sizes.

    `field` may be a dotted path, or several of which the first that is there counts. `default`
    stands in for a field that is missing, `null` for one that is null (else the default does).
    """

    field: Text | tuple[Text, ...] | None = None
    default: Number | None = None
    null: Number | None = None
    value: Number | None = None


class Domain(Frozen):
    """Members of an index: those below `count` for which `when` holds."""

    index: Name
    count: Number
    when: Text | None = None


class Constraint(Frozen):
    """What must hold, and what to say where it does not; `{expression}` in texts is evaluated."""

    require: Text
    when: Text | None = None
    message: Text
    help: Text | None = None


class TensorEntry(Frozen):
    """A logical tensor family: its checkpoint name, what it is for, and its shape.

    With `bias`, a condition, there is a vector of the first dim too: `.weight` becomes `.bias` and
    the role gets `_bias`. `over` names the domains of the indices in the name.
    """

    name: Text
    role: Role
    shape: tuple[Number, ...]
    over: tuple[Name, ...] = ()
    when: Text | None = None
    bias: Text | None = None


class Architecture(Frozen):
    """A family of models: which fields of config.json size it, and all tensors of a checkpoint."""

    format: Literal["tranship.architecture/1"]
    title: Text
    model_types: Annotated[tuple[Text, ...], Field(min_length=1)]
    notes: Text | None = None
    sizes: dict[Name, Size]
    domains: dict[Name, Domain] = {}
    constraints: tuple[Constraint, ...] = ()
    tensors: tuple[TensorEntry, ...]


class Option(Frozen):
    """An option of a layout, under the framework's own name for it.

    `flag` is how the framework's command line spells it; without one it is not passed on.
    An option without default may be left out, and is None then; a `required` one may not.
    """

    type: Literal["int", "bool", "str", "ints"]
    doc: Text
    default: int | str | bool | None = None
    required: bool = False
    minimum: int | None = None
    choices: tuple[str, ...] = ()
    flag: Text | None = None


class AxisEntry(Frozen):
    """A mesh axis; one of size 1 does not appear in the manifest."""

    name: Name
    size: Number
    stride: Number


class TableEntry(Frozen):
    """A list with one element for every value of an index below `count`."""

    index: Name
    count: Number
    value: Text


class PartEntry(Frozen):
    """What a buffer holds of the tensors of a role: a box, by default all.

    `rows` and `columns` are start and extent in dims 0 and 1. In an expression `rows` and `columns`
    are the tensor's own. `slot` is where the part lies in a stacked buffer.
    """

    role: Role
    rows: tuple[Number, Number] | None = None
    columns: tuple[Number, Number] | None = None
    slot: Number | None = None
    when: Text | None = None


class Stack(Frozen):
    """A buffer made of `slots` equal slabs, one for each value of `index` on its ranks.

    With `merge` the slabs follow each other along the rows; else they get a dim of their own in
    front. `count` gives the index its members where the tensors' names do not have it.
    """

    index: Name
    slots: Number
    slot: Number
    at: dict[Name, Number] = {}
    count: Number | None = None
    merge: bool = False


class Padding(Frozen):
    """Rows that a buffer has in all; those that no part fills are filled or excused."""

    rows: Number
    value: Annotated[int, Field(ge=0, le=1)] | None = None
    reason: Reason | None = None


class Beside(Frozen):
    """A buffer without tensors of its own, named after the tensors of a role.

    Exactly one of `recipe` (with `inputs`), `reason` and `alias` says what it is. With `shared` the
    first buffer is the memory, and all others are aliases of it.
    """

    role: Role
    shape: tuple[Number, ...]
    strides: tuple[Number, ...] | None = None
    recipe: Text | None = None
    inputs: tuple[Text, ...] = ()
    reason: Reason | None = None
    alias: Text | None = None
    shared: bool = False


class BufferEntry(Frozen):
    """Buffers of a framework, for every architecture that has the roles.

    `parts` are stacked along dim 0 in their order; `each` makes a buffer for every role it lists.
    In `name` the words `<name> <module> <own> <parent> <grandparent> <leaf>` stand for parts of the
    first tensor's name, and `<value>` for a text of `values`. `also` names modules that hold the
    same buffers again, as aliases. `dtype` is an expression: `"'f32'"`.
    Quantized parts must be made of whole blocks each, unless `ragged` lets all but the first begin
    with a block of their own. `help` is for users whose options make the buffers impossible.
    """

    name: Text
    also: tuple[Text, ...] = ()
    each: tuple[Role, ...] | Literal["*"] = ()
    parts: tuple[PartEntry, ...] = ()
    rows: tuple[Number, Number] | None = None
    columns: tuple[Number, Number] | None = None
    at: dict[Name, Number] = {}
    when: Text | None = None
    stack: Stack | None = None
    padding: Padding | None = None
    beside: Beside | None = None
    dtype: Text | None = None
    kind: Kind = Kind.PARAMETER
    quantize: bool = False
    ragged: bool = False
    help: Text | None = None


class Quantizing(Frozen):
    """How a framework holds block-quantized weights.

    `suffix` makes the name of the scales' buffer from that of the codes'.
    """

    suffix: Text


class Launch(Frozen):
    """How a framework is told at start what a manifest declares, besides its options' flags.

    `quantized` are arguments for a quantized manifest; in them `<json>` stands for an object with
    the `quantization_config` that a config.json would have.
    """

    quantized: tuple[Text, ...] = ()


class Layout(Frozen):
    """How a framework holds a model: options, mesh, and buffers as rules over roles.

    `assume` gives values to sizes that an architecture may lack, `values` names expressions.
    """

    format: Literal["tranship.layout/1"]
    title: Text
    side: Side
    framework: Name
    version: str = ""
    notes: Text | None = None
    world_size: Number
    assume: dict[Name, int | str] = {}
    options: dict[Name, Option] = {}
    values: dict[Name, Number] = {}
    axes: tuple[AxisEntry, ...] = ()
    tables: dict[Name, TableEntry] = {}
    constraints: tuple[Constraint, ...] = ()
    quantization: Quantizing | None = None
    launch: Launch | None = None
    buffers: tuple[BufferEntry, ...]
