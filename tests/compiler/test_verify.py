"""Each finding of the verifier, provoked by the smallest change that leads to it.

That nothing harmful passes is for `tests/mutants` to show, on changes drawn at random.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tests.mutants.cases import (
    copies,
    cut_blocks,
    derived,
    experts,
    lossy,
    passthrough,
    split_amax,
    tied,
)
from tests.mutants.declare import Case
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.proofs import reading
from tranship.compiler.verify import MAX_DIAGNOSTICS, PROOFS, digests_of, verify
from tranship.schema.diagnostics import Diagnostic, known_codes
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Alias, Manifest, Piece
from tranship.schema.moves import Moves, edge_moves
from tranship.schema.plan import (
    Op,
    Place,
    Round,
    Slot,
    Span,
    TransferPlan,
    UnusedTensor,
    Window,
)

Change = Callable[[TransferPlan], TransferPlan]


@cache
def compiled(make: Callable[[], Case]) -> tuple[Case, TransferPlan]:
    case = make()
    return case, compile_transfer(
        case.sender, case.receiver, case.policy, case.placement, case.options
    )


def judged(case: Case, plan: TransferPlan) -> tuple[Diagnostic, ...]:
    inputs = (case.sender, case.receiver, case.policy, case.placement)
    digests = digests_of(*inputs, case.options)
    return verify(plan, *inputs, digests=digests, options=case.options)


def edge(number: int, **fields: Any) -> Change:
    """Change fields of an edge."""

    def change(plan: TransferPlan) -> TransferPlan:
        return _item(plan, "edges", number, **fields)

    return change


def half(number: int, side: str, **fields: Any) -> Change:
    """Change fields of a half; `scale` is a dict of the scale half's."""

    def change(plan: TransferPlan) -> TransferPlan:
        old = getattr(plan.edges[number], side)
        own = dict(fields)
        if "scale" in own and own["scale"] is not None:
            own["scale"] = old.scale.model_copy(update=own["scale"])
        return _item(plan, "edges", number, **{side: old.model_copy(update=own)})

    return change


def item(field: str, number: int, **fields: Any) -> Change:
    """Change fields of a fill, a step or a round."""
    return lambda plan: _item(plan, field, number, **fields)


def _item(plan: TransferPlan, field: str, number: int, **fields: Any) -> TransferPlan:
    items = list(getattr(plan, field))
    items[number] = items[number].model_copy(update=fields)
    return plan.model_copy(update={field: tuple(items)})


def whole(**fields: Any) -> Change:
    """Change fields of the plan."""
    return lambda plan: plan.model_copy(update=fields)


def less(field: str, number: int) -> Change:
    """Leave an item out."""

    def change(plan: TransferPlan) -> TransferPlan:
        items = list(getattr(plan, field))
        del items[number]
        return plan.model_copy(update={field: tuple(items)})

    return change


def twice(field: str) -> Change:
    """Repeat the first item."""

    def change(plan: TransferPlan) -> TransferPlan:
        items = getattr(plan, field)
        return plan.model_copy(update={field: (*items, items[0])})

    return change


def staged(*slots: tuple[int, int]) -> Change:
    """Give the plan other slots: offsets and sizes."""

    def change(plan: TransferPlan) -> TransferPlan:
        regions = [Span(offset=offset, size=size) for offset, size in slots]
        new = tuple(Slot(sender=region, receiver=region) for region in regions)
        return plan.model_copy(update={"staging": plan.staging.model_copy(update={"slots": new})})

    return change


def split(plan: TransferPlan) -> TransferPlan:
    """Quantize the upper and the lower rows in two windows, cut within a block."""
    first = plan.edges[0]
    windows = [Window(start=(row, 0), extent=(9, 8)) for row in (0, 9)]
    return plan.model_copy(
        update={"edges": tuple(first.model_copy(update={"window": w}) for w in windows)}
    )


def windowed(*formulas: str) -> Change:
    """Write the upper and the lower half of every piece by edges with other formulas."""

    def change(plan: TransferPlan) -> TransferPlan:
        windows = [Window(start=(row, 0), extent=(2, 6)) for row in (0, 2)]
        parts = tuple(
            old.model_copy(update={"window": window, "formula": formula})
            for old in plan.edges
            for window, formula in zip(windows, formulas, strict=True)
        )
        return plan.model_copy(update={"edges": parts})

    return change


FALSE = "sha256:" + "0" * 64

PLANS: list[tuple[str, Callable[[], Case], Change]] = [
    ("TS600", copies, whole(policy=FALSE)),
    ("TS600", copies, whole(options=FALSE)),
    ("TS601", copies, whole(seats=None)),
    ("TS601", tied, edge(0, nearest=True)),
    ("TS602", copies, half(0, "sender", offset="nobody")),
    ("TS602", copies, half(0, "sender", at={"nobody": 0})),
    ("TS602", copies, half(0, "sender", start=(0,))),
    ("TS602", copies, edge(3, op=Op.AMAX)),
    ("TS603", copies, half(0, "receiver", offset=6)),
    ("TS603", copies, half(0, "sender", buffer="nobody")),
    ("TS603", derived, half(1, "receiver", buffer="alias.{layer}")),
    ("TS604", copies, half(0, "sender", dtype=DType.F16)),
    ("TS604", experts, half(0, "receiver", block=(4, 3))),
    ("TS604", experts, half(0, "receiver", scale={"dtype": DType.BF16})),
    ("TS604", experts, half(0, "receiver", scale=None)),
    ("TS605", experts, half(0, "receiver", scale={"offset": 0})),
    ("TS605", experts, half(0, "receiver", scale={"buffer": "l.{layer}.w13"})),
    ("TS605", experts, half(0, "receiver", scale={"extent": (1, 2)})),
    ("TS607", tied, item("fills", 0, value=1)),
    ("TS607", tied, item("fills", 0, dtype=DType.F16)),
    ("TS608", copies, edge(0, tensor="l.{layer}.nobody")),
    ("TS608", copies, edge(0, shape=(9, 6))),
    ("TS610", copies, less("edges", 0)),
    ("TS610", tied, less("fills", 0)),
    ("TS610", cut_blocks, edge(0, window=Window(start=(0, 0), extent=(17, 8)))),
    ("TS611", copies, twice("edges")),
    ("TS611", tied, twice("fills")),
    ("TS620", derived, less("derived", 0)),
    ("TS620", derived, item("derived", 0, recipe="transpose")),
    ("TS621", derived, twice("derived")),
    ("TS621", derived, item("derived", 0, buffer="l.{layer}.gate")),
    ("TS622", derived, item("derived", 0, after=0)),
    ("TS623", derived, lambda plan: plan.model_copy(update={"derived": plan.derived[::-1]})),
    ("TS623", derived, item("derived", 1, after=1)),
    ("TS630", derived, whole(unused=())),
    ("TS631", derived, item("unused", 0, reason="because")),
    ("TS632", derived, twice("unused")),
    ("TS632", copies, whole(unused=(UnusedTensor(tensor="l.{layer}.q", reason="idle"),))),
    ("TS640", experts, edge(0, op=Op.COPY)),
    ("TS642", experts, edge(0, formula=None)),
    ("TS642", experts, edge(0, formula="rescale")),
    ("TS642", split_amax, edge(1, formula="divide")),
    ("TS642", copies, edge(0, formula="divide")),
    ("TS643", copies, edge(3, place=Place.SENDER)),
    ("TS646", cut_blocks, edge(0, place=Place.SENDER)),
    ("TS647", split_amax, less("edges", 0)),
    ("TS649", experts, windowed("divide", "reciprocal")),
    ("TS650", copies, edge(0, round=99)),
    ("TS650", copies, edge(0, round=-1)),
    ("TS651", cut_blocks, split),
    ("TS652", copies, item("rounds", 0, after=(1,))),
    ("TS653", split_amax, less("edges", 1)),
    ("TS660", copies, staged((0, 128), (2048, 2048))),
    ("TS660", copies, item("rounds", 1, slot=2)),
    ("TS661", copies, staged((0, 2048), (4096, 2048))),
    ("TS661", copies, lambda plan: plan.model_copy(
        update={"staging": plan.staging.model_copy(update={"budget": 1 << 20})}
    )),
    ("TS662", copies, staged((0, 2048), (1024, 2048))),
    ("TS663", copies, staged((0, 2048), (2050, 2046))),
    ("TS670", copies, item("rounds", 2, after=())),
    ("TS670", copies, item("rounds", 1, slot=0)),
    ("TS699", derived, lambda plan: plan.model_copy(
        update={"unused": plan.unused * (MAX_DIAGNOSTICS + 2)}
    )),
]  # fmt: skip
"""Codes, and what of a plan must change for them to be found."""


@pytest.mark.parametrize(
    ("code", "make", "change"), PLANS, ids=[f"{n}-{row[0]}" for n, row in enumerate(PLANS)]
)
def test_a_changed_plan_is_refused(code: str, make: Callable[[], Case], change: Change) -> None:
    case, plan = compiled(make)
    found = judged(case, change(plan))
    assert code in {diagnostic.code for diagnostic in found}
    assert {diagnostic.at.file for diagnostic in found if diagnostic.at} == {"plan"}


def _buffer(manifest: Manifest, name: str, **fields: Any) -> Manifest:
    buffers = tuple(
        buffer.model_copy(update=fields) if buffer.name == name else buffer
        for buffer in manifest.buffers
    )
    return manifest.model_copy(update={"buffers": buffers})


def _piece(manifest: Manifest, name: str, **fields: Any) -> Manifest:
    first, *others = next(b.pieces for b in manifest.buffers if b.name == name)
    changed = Piece.model_validate({**first.model_dump(), **fields})
    return _buffer(manifest, name, pieces=(changed, *others))


def _scaled(manifest: Manifest, name: str, **fields: Any) -> Manifest:
    encoding = next(b.encoding for b in manifest.buffers if b.name == name)
    return _buffer(manifest, name, encoding=encoding.model_copy(update=fields))


def _irregular(manifest: Manifest) -> Manifest:
    """A buffer with pieces of many different strides."""
    tensor = manifest.tensors[0].name
    pieces = tuple(
        Piece(tensor=tensor, start=(0, 0), extent=(2, 1), strides=(11 + k, 1)) for k in range(11)
    )
    held = next(buffer.pieces for buffer in manifest.buffers if buffer.name == "w")
    return _buffer(manifest, "w", pieces=(*held, *pieces))


MANIFESTS: list[tuple[str, Callable[[], Case], Callable[[Case], Case]]] = [
    ("TS606", copies, lambda c: replace(c, receiver=c.sender)),
    ("TS606", copies, lambda c: replace(c, sender=c.sender.model_copy(update={"ranks": "0..1"}))),
    ("TS606", tied, lambda c: replace(c, sender=c.sender.model_copy(
        update={"buffers": c.sender.buffers * 2}
    ))),
    ("TS613", tied, lambda c: replace(c, receiver=c.receiver.model_copy(update={
        "tensors": tuple(t.model_copy(update={"tied_to": None}) for t in c.receiver.tensors)
    }), sender=c.sender.model_copy(update={
        "tensors": tuple(t.model_copy(update={"tied_to": None}) for t in c.sender.tensors)
    }))),
    ("TS614", copies, lambda c: replace(c, receiver=_buffer(
        c.receiver, "l.{layer}.qkv", shape=(4, 6)
    ))),
    ("TS614", cut_blocks, lambda c: replace(c, receiver=_buffer(
        _piece(c.receiver, "w", strides=(4, 1)), "w", strides=(2, 1)
    ))),
    ("TS615", cut_blocks, lambda c: replace(c, receiver=_irregular(c.receiver))),
    ("TS624", derived, lambda c: replace(c, receiver=_buffer(
        c.receiver, "alias.{layer}", role=Alias(kind="alias", of="nobody")
    ))),
    ("TS641", lossy, lambda c: replace(c, policy=None)),
    ("TS644", experts, lambda c: replace(c, receiver=_buffer(
        c.receiver, "l.{layer}.w13", layout="cutlass_w31"
    ))),
    ("TS644", passthrough, lambda c: replace(c, receiver=_buffer(
        c.receiver, "w_scale_inv", layout="cutlass_scale_128x4"
    ))),
    ("TS645", passthrough, lambda c: replace(c, receiver=_scaled(
        c.receiver, "w", scale_values="power_of_two"
    ))),
]  # fmt: skip
"""Codes, and what of the inputs must change for them to be found in a plan that claims them."""


@pytest.mark.parametrize(
    ("code", "make", "change"), MANIFESTS, ids=[f"{n}-{row[0]}" for n, row in enumerate(MANIFESTS)]
)
def test_a_plan_is_refused_for_other_inputs(
    code: str, make: Callable[[], Case], change: Callable[[Case], Case]
) -> None:
    case, plan = compiled(make)
    other = change(case)
    digests = digests_of(other.sender, other.receiver, other.policy, other.placement, other.options)
    claimed = plan.model_copy(
        update={
            "policy": digests.policy,
            "sender": plan.sender.model_copy(update={"manifest": digests.sender}),
            "receiver": plan.receiver.model_copy(update={"manifest": digests.receiver}),
        }
    )
    assert code in {diagnostic.code for diagnostic in judged(other, claimed)}


def test_a_piece_with_steps_does_not_pass_as_whole_blocks() -> None:
    case, plan = compiled(cut_blocks)
    rows = {"start": ("rank", 0), "extent": ("(20 - rank) // 3", 8), "step": (3, 1)}
    buffer = case.sender.buffers[0].model_copy(update={"shape": ("(20 - rank) // 3", 8)})
    sender = case.sender.model_copy(update={"buffers": (buffer,)})
    other = replace(case, sender=_piece(sender, "w", **rows))
    digests = digests_of(other.sender, other.receiver, None, None, other.options)
    claimed = half(0, "sender", **rows)(plan)
    frame = plan.sender.model_copy(update={"manifest": digests.sender})
    found = judged(other, claimed.model_copy(update={"sender": frame}))
    assert "TS648" in {diagnostic.code for diagnostic in found}


def test_moves_that_leave_their_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(plan: TransferPlan, number: int, *ranks: IntArray) -> Moves:
        moves = edge_moves(plan, number, *ranks)
        shifted = replace(moves.region, start=moves.region.start + 1)
        return replace(moves, region=shifted)

    monkeypatch.setattr(reading, "edge_moves", misread)
    assert "TS612" in {diagnostic.code for diagnostic in judged(*compiled(copies))}


def test_without_options_neither_formula_nor_budget_is_compared() -> None:
    case, plan = compiled(experts)
    digests = digests_of(case.sender, case.receiver, None, None, case.options)
    staging = plan.staging.model_copy(update={"budget": 1 << 20})
    other = plan.model_copy(update={"staging": staging})
    for number in range(len(plan.edges)):
        other = edge(number, formula="rescale")(other)
    assert verify(other, case.sender, case.receiver, digests=digests) == ()
    assert {found.code for found in judged(case, other)} == {"TS642", "TS661"}


def test_every_code_of_the_verifier_is_provoked_here() -> None:
    provoked = {row[0] for row in PLANS} | {row[0] for row in MANIFESTS} | {"TS612", "TS648"}
    assert provoked == {code for code in known_codes() if code.startswith("TS6")}


def test_the_proofs_are_the_eight_of_the_design() -> None:
    assert [proof.__name__.removeprefix("prove_") for proof in PROOFS] == [
        "digests",
        "coverage",
        "derived",
        "used",
        "edge_types",
        "rounds",
        "staging",
        "hazards",
    ]


def test_boxes_of_many_pieces_are_named_by_their_first_wrong_element() -> None:
    case, plan = compiled(copies)
    found = judged(case, less("edges", 1)(plan))
    missing = next(diagnostic for diagnostic in found if diagnostic.code == "TS610")
    assert missing.message == (
        "element [2, 0] of 'l.0.qkv' on receiver rank 0 is never written "
        "(and 3 other kinds of buffer)"
    )
    assert missing.expected == "element [0, 0] of 'l.0.kv'"
    assert missing.at is not None
    assert missing.at.pointer == "/edges/0"


def test_a_round_may_wait_through_another_one() -> None:
    case, plan = compiled(copies)
    chained = tuple(
        Round(slot=round_.slot, after=(number - 1,) if number else ())
        for number, round_ in enumerate(plan.rounds)
    )
    assert len(chained) > 2
    assert judged(case, plan.model_copy(update={"rounds": chained})) == ()
