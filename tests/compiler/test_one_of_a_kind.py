"""Plans that are wrong for some index values or ranks only, which look like the others at first.

The verifier looks at one of each kind (`compiler/proofs/units.py`). Each plan here is right for the
first of what seems to be a kind, and refused all the same.
"""

from tests.compiler.verdicts import Transfer, narrowed_verdict, whole_verdict
from tests.mutants.declare import SMALL, manifest, plain, scaled
from tests.mutants.editing import replaced, with_edge, with_half
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    BufferFamily,
    Derived,
    Fill,
    IntExpression,
    Manifest,
    Piece,
    Side,
    TensorFamily,
)
from tranship.schema.plan import TransferPlan, Window

LAYERS = {"layer": "0..7"}
NAME = "t.{layer}"
TENSORS = (TensorFamily(name=NAME, indices=LAYERS, shape=(4, 6)),)
Axes = dict[str, tuple[int, int]]

# Stage 0 has layers 0 to 3, each called by its number there. Moved so, layers 0 and 1 change place
# with 4 and 6: the names of the first of each kind, 0 and 4, are equal, those of 1 and 6 are not.
HOME: dict[str, IntExpression] = {"pp": "layer // 4"}
ELSEWHERE: dict[str, IntExpression] = {"pp": "max(1 - layer // 2, 0) + layer // 4 * (layer % 2)"}


def _sender() -> Manifest:
    held = plain(NAME, DType.BF16, (4, 6), (0, 0), indices=LAYERS)
    return manifest(Side.SENDER, 1, {}, TENSORS, (held,))


def _received(axes: Axes, *buffers: BufferFamily, **tables: tuple[int, ...]) -> Transfer:
    world = max(size * stride for size, stride in axes.values())
    return Transfer(
        _sender(), manifest(Side.RECEIVER, world, axes, TENSORS, buffers, tables), SMALL
    )


def _buffer(name: str, **more: object) -> BufferFamily:
    return BufferFamily.model_validate(
        {
            "name": name,
            "indices": LAYERS,
            "dtype": DType.BF16,
            "shape": (4, 6),
            "pieces": (Piece(tensor=NAME, start=(0, 0), extent=(4, 6)),),
            **more,
        }
    )


def _compiled(transfer: Transfer) -> TransferPlan:
    """The plan of a transfer; it is proved."""
    plan = compile_transfer(transfer.sender, transfer.receiver, options=transfer.options)
    assert narrowed_verdict(plan, transfer) == whole_verdict(plan, transfer) == []
    return plan


def _assert_refused(plan: TransferPlan, transfer: Transfer, code: str) -> None:
    assert code in whole_verdict(plan, transfer)
    assert code in narrowed_verdict(plan, transfer)


def test_names_with_an_axis_are_compared_on_every_rank() -> None:
    transfer = _received({"tp": (2, 1), "dp": (2, 2)}, _buffer("w.{layer}.{tp}"))
    plan = _compiled(transfer)
    for name in ("w.{layer}.{rank}", "w.{layer}.0", "w.{layer}.{tp * dp}", "w.{tp}.{layer}"):
        _assert_refused(with_half(plan, 0, "receiver", buffer=name), transfer, "TS603")


def test_an_index_that_nothing_reads_repeats_every_write() -> None:
    transfer = _received({"tp": (2, 1)}, _buffer("w.{layer}"))
    plan = _compiled(transfer)
    twice = {**plan.edges[0].indices, "x": "0..1"}
    _assert_refused(with_edge(plan, 0, indices=twice), transfer, "TS611")
    _assert_refused(with_half(plan, 0, "receiver", indices={"x": "0..1"}), transfer, "TS611")


def test_an_index_that_is_read_alike_repeats_some_writes() -> None:
    transfer = _received({"tp": (2, 1)}, _buffer("w.{layer}"))
    plan = _compiled(transfer)
    halves = Window(start=("x // 2 * 2", 0), extent=(2, 6))
    indices = {**plan.edges[0].indices, "x": "0..2"}
    _assert_refused(with_edge(plan, 0, indices=indices, window=halves), transfer, "TS611")


def test_a_fill_or_a_step_may_be_repeated_by_an_index() -> None:
    transfer = _padded_by_stage("w.{layer}", "made.{layer}")
    plan = _compiled(transfer)
    fill, step = plan.fills[0], plan.derived[0]
    more = {**LAYERS, "x": "0..1"}
    again = replaced(plan, "fills", 0, fill.model_copy(update={"indices": more}))
    _assert_refused(again, transfer, "TS611")
    again = replaced(plan, "derived", 0, step.model_copy(update={"indices": more}))
    _assert_refused(again, transfer, "TS621")


def test_an_index_with_the_name_of_an_axis_is_refused() -> None:
    transfer = _received({"tp": (2, 1)}, _buffer("w.{layer}"))
    plan = _compiled(transfer)
    named = with_edge(plan, 0, indices={**LAYERS, "tp": "0"})
    _assert_refused(with_half(named, 0, "receiver", start=("tp", 0)), transfer, "TS602")
    for name in ("tp", "rank", "layer"):
        own = with_half(plan, 0, "receiver", indices={name: "0..1"})
        _assert_refused(own, transfer, "TS602")


def _padded_by_stage(name: str, made: str) -> Transfer:
    """Buffers of five rows, the last of which is filled, and a recipe that reads them."""
    recipe = Derived(kind="derived", recipe="absorb", inputs=(name,))
    return _received(
        {"pp": (2, 1)},
        _buffer(
            name,
            at=HOME,
            shape=(5, 6),
            fills=(Fill(offset=24, sizes=(6,), strides=(1,), value=0),),
        ),
        _buffer(made, at=HOME, pieces=(), role=recipe),
    )


def test_fills_on_other_ranks_fill_other_buffers_of_the_same_name() -> None:
    transfer = _padded_by_stage("w.{layer % 4}", "made.{layer % 4}")
    plan = _compiled(transfer)
    moved = plan.fills[0].model_copy(update={"at": ELSEWHERE})
    _assert_refused(replaced(plan, "fills", 0, moved), transfer, "TS610")


def test_steps_on_other_ranks_make_other_buffers_of_the_same_name() -> None:
    transfer = _padded_by_stage("w.{layer % 4}", "made.{layer % 4}")
    plan = _compiled(transfer)
    moved = plan.derived[0].model_copy(update={"at": ELSEWHERE})
    _assert_refused(replaced(plan, "derived", 0, moved), transfer, "TS620")


def test_a_table_of_the_schedule_does_not_hide_one_of_the_manifest() -> None:
    recipe = Derived(kind="derived", recipe="absorb", inputs=("w.{layer}",))
    padding = Fill(offset=24, sizes=("(rows[layer] - 4) * 6",), strides=(1,), value=0)
    transfer = _received(
        {"tp": (2, 1)},
        _buffer("w.{layer}", shape=("rows[layer]", 6), fills=(padding,)),
        _buffer("made.{layer}", pieces=(), role=recipe),
        rows=(4, 4, 4, 4, 5, 5, 5, 5),
    )
    plan = _compiled(transfer)
    hidden = plan.model_copy(update={"schedule": {**plan.schedule, "rows": (0,) * 8}})
    assert narrowed_verdict(hidden, transfer) == whole_verdict(hidden, transfer) == []
    unfilled = hidden.model_copy(update={"fills": ()})
    _assert_refused(unfilled, transfer, "TS610")


def test_holders_of_one_box_may_hold_it_in_different_strides() -> None:
    tensors = (TensorFamily(name="t", shape=(16, 24)),)
    whole = {"tensor": "t", "start": (0, 0), "extent": (16, 24)}
    common = {"name": "t", "dtype": DType.BF16, "shape": (16, 24), "layout": "marlin"}
    turned = ("24 - dp * 23", "1 + dp * 15")
    held = BufferFamily.model_validate(
        {
            **common,
            "strides": turned,
            "pieces": (Piece.model_validate({**whole, "strides": turned}),),
        }
    )
    wanted = BufferFamily.model_validate({**common, "pieces": (Piece.model_validate(whole),)})
    transfer = Transfer(
        manifest(Side.SENDER, 2, {"dp": (2, 1)}, tensors, (held,)),
        manifest(Side.RECEIVER, 2, {"tp": (2, 1)}, tensors, (wanted,)),
        SMALL,
    )
    plan = compile_transfer(transfer.sender, transfer.receiver, options=SMALL)
    first, own = with_edge(plan, 0, turn=0), with_edge(plan, 0, turn="tp")
    # Who sends from where is for the layout, and how much for the staging memory.
    assert "TS644" not in whole_verdict(first, transfer) + narrowed_verdict(first, transfer)
    _assert_refused(own, transfer, "TS644")


def test_one_edge_quantizes_for_all_of_its_receivers() -> None:
    of_any = scaled(NAME, (4, 6), (0, 0), (2, 3), (2, 2), (0, 0), indices={"layer": "0..3"})
    powers = scaled(
        NAME, (4, 6), (0, 0), (2, 3), (2, 2), (0, 0), powers=True, indices={"layer": "4..7"}
    )
    transfer = _received({"tp": (1, 1)}, *of_any, *powers)
    plan = _compiled(transfer)
    joined = with_edge(plan, 0, indices=LAYERS).model_copy(update={"edges": ()})
    for edge in plan.edges:
        both = edge.model_copy(update={"indices": LAYERS})
        alone = joined.model_copy(update={"edges": (both,)})
        _assert_refused(alone, transfer, "TS642")


def test_layers_may_be_on_no_rank_where_axes_overlap() -> None:
    """The third stage has coordinates 1 and 2 on the other axis, and never 0."""
    at = {"pp": "layer // 3", "tp": 0}
    axes = {"pp": (3, 2), "tp": (3, 1)}
    nowhere = _received(axes, _buffer("w.{layer}", at=at), _buffer("v.{layer}", at=at))
    everywhere = _received({"pp": (3, 2), "tp": (2, 1)}, *nowhere.receiver.buffers)
    plan = _compiled(everywhere)
    sides = {"axes": nowhere.receiver.axes, "manifest": _digest(nowhere)}
    moved = plan.model_copy(update={"receiver": plan.receiver.model_copy(update=sides)})
    _assert_refused(moved, nowhere, "TS630")


def _digest(transfer: Transfer) -> str:
    inputs = (transfer.sender, transfer.receiver, None, None)
    return digests_of(*inputs, transfer.options).receiver


def test_one_layer_that_differs_is_found() -> None:
    transfer = _received({"pp": (2, 1)}, _buffer("w.{layer % 4}", at=HOME))
    plan = _compiled(transfer)
    last = "max(layer - 6, 0)"
    for field, value in (("offset", last), ("at", {"pp": f"layer // 4 - {last}"})):
        _assert_refused(with_half(plan, 0, "receiver", **{field: value}), transfer, "TS603")
    named = with_half(plan, 0, "receiver", buffer=f"w.{{layer % 4 + {last}}}")
    _assert_refused(named, transfer, "TS603")
