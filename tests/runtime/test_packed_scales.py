"""Packed scales, from BF16 to an engine's memory: on any shape, by torch and by kernels.

The rounds on streams and in mapped memory have theirs in `test_streamed.py` and `test_mapped.py`.
"""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.direct_steps import senders_of
from tests.runtime.kernel_steps import DEVICE
from tests.runtime.live_models import model_of, place
from tests.runtime.local_jobs import at_once
from tests.runtime.local_jobs import codes as codes_of
from tests.runtime.packed_cases import (
    CODES,
    SCALES,
    SENTINEL,
    Case,
    bound,
    engine,
    engine_scales,
    packed,
    whole_storage,
    with_codes,
    with_scales,
)
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime import replay
from tranship.runtime.bind import bind
from tranship.runtime.direct import direct
from tranship.runtime.kernels.mapped import bind_direct
from tranship.runtime.kernels.packed import PackedKernels, bind_packed
from tranship.runtime.live import live_tensors
from tranship.runtime.packed import PackedScales, is_packed, pack_scales, receive_packed
from tranship.runtime.program import program
from tranship.runtime.session import Receiver, Sender, State
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import World
from tranship.schema.check import check_manifest
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.manifest import Kind, Side

# --- any shape, any shards, by torch --------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw fused tensors, of which the last may be ragged, and how both sides cut them."""
    blocks = draw(st.lists(st.integers(1, 2), max_size=2))
    last = draw(st.integers(1, 300))
    receivers = draw(st.integers(1, 2))
    tensor_dim = draw(st.integers(0, 1))
    return Case(
        rows=(*(128 * count for count in blocks), last),
        columns=draw(st.integers(1, 1200 // receivers)),
        experts=draw(st.sampled_from([0, 0, 1, 2])),
        receivers=receivers,
        tensor_dim=tensor_dim,
        senders=draw(st.integers(1, 2)) if last * receivers > 1 else 1,
        sender_dim=draw(st.integers(0, 1)),
        cut=draw(st.integers(1, 400)),
        staging=draw(st.sampled_from([1 << 21, 1 << 24])),
    )


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_an_engine_holds_packed_scales_of_all_that_trainers_hold(case: Case) -> None:
    job = bound(case)
    for version in (1, 2):
        job.assert_whole(version)


def test_scales_that_arrive_with_their_codes_are_packed() -> None:
    case = Case((256, 64), 700, experts=2)
    sender = case.manifest("sender", "fsdp", 1, _exponents(case))
    assert check_manifest(sender) == ()
    plan = compile_transfer(sender, case.receiver)
    assert {edge.op for edge in plan.edges} == {"copy"}
    codes, words = case.expected(0, 1)
    trainer, held = model_of(sender, 0), engine(case, 0)
    trainer.get_parameter(CODES).data.copy_(codes)
    trainer.get_parameter(SCALES).data.view(torch.int32).copy_(words[:, ::128])
    (out,), (back,) = connect_locally(World(senders=1, receivers=1), timeout=30)
    publisher = Sender.bind(plan, sender, live_tensors(trainer), out, 0)
    receiver = Receiver.bind(plan, case.receiver, live_tensors(held), back, 0)
    results = at_once([partial(publisher.publish, 1), partial(receiver.receive, 1)])
    assert [result for result in results if isinstance(result, BaseException)] == []
    assert torch.equal(held.get_parameter(SCALES).data, words)


def _exponents(case: Case) -> list[dict[str, Any]]:
    """Declare codes and exponents of the case as row-major buffers of one sender."""
    codes, scales = case.received()
    del scales["layout"]
    for piece in (*codes["pieces"], *scales["pieces"]):
        piece |= {"origin": [0, 0], "start": [0, 0]}
    return [codes, scales]


def test_padding_that_is_excused_is_zero_too() -> None:
    case = Case((128,), 300)
    (fill,) = case.received()[1]["fills"]
    del fill["value"]
    excused = with_scales(case, fills=[fill | {"reason": "no blocks there"}])
    assert check_manifest(excused) == ()
    bound_scales = bind(_live(case), excused, Side.RECEIVER, 0).packed[SCALES]
    assert not bound_scales.scales.view(torch.uint8).any()


def _live(case: Case) -> Any:
    return live_tensors(engine(case, 0))


# --- what is wrong in the engine's memory is found ------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_wrong_byte_in_any_row_tears_the_update(data: st.DataObject) -> None:
    case = Case((128, 72), 600, experts=2)
    job = bound(case)
    job.assert_whole(1)
    held = job.engines[0].get_parameter(SCALES).data
    at = tuple(data.draw(st.integers(0, size - 1)) for size in held.shape)
    bit = 1 << data.draw(st.integers(0, 30))

    def spoil(scales: PackedScales) -> None:
        pack_scales(scales)
        held[at] ^= bit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "pack_scales", spoil)
        assert codes_of(job.step(2)) == ["TS841"]
    (receiver,) = (own for own in job.sessions if isinstance(own, Receiver))
    assert receiver.state is State.TORN
    job.assert_whole(3)
    assert receiver.state is State.COMMITTED


# --- by kernels -----------------------------------------------------------------------------------

SHAPES = [(1, 1), (3, 600), (127, 128), (128, 512), (130, 513), (256, 2600), (385, 300)]
NOTHING = [(0, 128), (128, 0), (2, 0, 128), (2, 128, 0)]


def random_scales(shape: tuple[int, ...]) -> tuple[PackedScales, Tensor]:
    """Return scales to be packed on the device, and what they become, experts outermost."""
    *outer, rows, columns = shape
    case = Case((rows,), columns, experts=outer[0] if outer else 0)
    found = receive_packed(f"s{shape}", engine_scales(case, DEVICE), shape)
    blocks = -(-columns // 128)
    count = max(case.experts, 1)
    exponents = torch.randint(1, 255, (count, -(-rows // 128), blocks))
    place_ = found.scales.view(torch.uint8).view(count, exponents.shape[1], -1)
    place_[..., :blocks] = exponents.to(torch.uint8)
    words = [packed(torch.exp2(one.double() - 127), rows) for one in exponents]
    return found, torch.stack(words) if outer else words[0]


def differing(kernels: PackedKernels) -> list[str]:
    """Wait for the device, and name what the kernels found."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
    return kernels.differing()


def test_where_there_are_no_codes_there_is_nothing_to_pack() -> None:
    for shape in NOTHING:
        *outer, rows, columns = shape
        words = torch.empty((*outer, rows, -(-columns // 512)), dtype=torch.int32, device=DEVICE)
        found = receive_packed("s", words, shape)
        pack_scales(found)
        assert is_packed(found)
        kernels = bind_packed([found], DEVICE)
        kernels.run()
        assert differing(kernels) == []


def test_kernels_pack_all_scales_at_once() -> None:
    pairs = [random_scales(shape) for shape in [*SHAPES, (3, 200, 300), (2, 128, 1100)]]
    given_ = [scales for scales, _ in pairs]
    kernels = bind_packed(given_, DEVICE)
    kernels.run()
    for scales, words in pairs:
        wanted = torch.empty_strided(words.shape, scales.engine.stride(), dtype=torch.int32)
        whole_storage(wanted).fill_(SENTINEL)
        wanted.copy_(words)
        assert torch.equal(whole_storage(scales.engine).cpu(), whole_storage(wanted)), scales.name
    assert differing(kernels) == []


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (130, 513), (2, 150, 300)])
def test_kernels_find_a_wrong_byte_in_any_row(shape: tuple[int, ...]) -> None:
    found = [random_scales(shape)[0], random_scales((64, 64))[0]]
    kernels = bind_packed(found, DEVICE)
    kernels.run()
    memory = found[0].engine
    rows = memory.reshape(-1, memory.shape[-1]).shape[0]
    for row in {0, 1, 127, 128, 129, rows - 2, rows - 1} & set(range(rows)):
        at = (*divmod(row, shape[-2]), -1) if len(shape) == 3 else (row, -1)
        for launch in kernels.write:
            launch()
        memory[at] ^= 1 << 20
        for launch in kernels.check:
            launch()
        assert differing(kernels) == [found[0].name]


@pytest.mark.parametrize(
    "case",
    [
        Case((128, 40), 200, exact=True),
        Case((128, 40), 200, senders=2, cut=20, exact=True),
        Case((140,), 384, experts=2, receivers=2, tensor_dim=1, exact=True),
    ],
    ids=["blocks of one sender", "blocks of two senders", "experts"],
)
def test_receivers_pack_what_they_read_of_the_senders_memory(case: Case) -> None:
    trainers = [model_of(case.sender, rank) for rank in range(case.senders)]
    for rank, model in enumerate(trainers):
        case.train(model, rank, 1)
    senders = senders_of(case.plan)
    sources = [
        [trainers[own.rank].get_parameter(use.name).data.to(DEVICE) for use in own.buffers]
        for own in senders
    ]
    for rank in range(case.receivers):
        held = bind(live_tensors(engine(case, rank).to(DEVICE)), case.receiver, Side.RECEIVER, rank)
        own = program(case.plan, Side.RECEIVER, rank)
        buffers = [held.memory(use.name) for use in own.buffers]
        jobs = direct(own, senders)
        kernels = bind_direct(jobs, buffers, sources, DEVICE, list(held.packed.values()))
        kernels.run(0)
        codes, words = case.expected(rank, 1)
        assert torch.equal(held.tensors[CODES].cpu().view(torch.uint8), codes.view(torch.uint8))
        assert torch.equal(held.tensors[SCALES].cpu(), words)
        assert differing(kernels.packed) == []


# --- what cannot be packed is refused -------------------------------------------------------------

FUSED = Case((256, 128), 700)


def found_in(manifest: Any) -> list[tuple[str, str | None]]:
    return [(found.code, found.expected) for found in check_manifest(manifest)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dtype": "f32"}, "dtype f8e8m0fnu"),
        ({"strides": [8, 1]}, "no strides: bytes follow each other"),
    ],
)
def test_scales_that_are_no_bytes_in_a_row_are_refused(
    fields: dict[str, Any], expected: str
) -> None:
    found = found_in(with_scales(FUSED, **fields))
    assert [code for code, _ in found] == ["TS198"]
    assert str(found[0][1]).startswith(expected)


def test_scales_with_other_dims_than_their_codes_are_refused() -> None:
    case = Case((128,), 128, experts=2)
    (fill,) = case.received()[1]["fills"]
    flat = {"shape": [2, 4], "fills": [fill | {"sizes": [2, 3], "strides": [4, 1]}]}
    expected = "as many dims as its codes, whose shape is [2, 128, 128]"
    assert found_in(with_scales(case, **flat)) == [("TS198", expected)]


def test_scales_of_other_shapes_are_refused() -> None:
    codes, scales = FUSED.received()
    for piece in scales["pieces"]:
        piece["offset"] = f"({piece['offset']}) // 8 * 6"
    tight = scales | {"shape": [3, 6], "fills": []}
    message = "a shape of [..., ceil(n / 128), 4 * ceil(k / 512)] for codes [..., n, k]"
    found = found_in(FUSED.manifest("receiver", "tp", 1, [codes, tight]))
    assert found == [("TS198", message)] * 2


def test_padding_of_another_value_is_refused() -> None:
    (fill,) = FUSED.received()[1]["fills"]
    found = found_in(with_scales(FUSED, fills=[fill | {"value": 1}]))
    assert found == [("TS198", "padding of value 0")]


@pytest.mark.parametrize("block", [[128, 64], [64, 128], [1, 128], ["all", "all"]])
def test_scales_of_other_blocks_are_refused(block: list[int | str]) -> None:
    case = Case((128,), 128)
    codes, scales = case.received()
    encoding = codes["encoding"] | {"block": block}
    height, width = (128 if n == "all" else int(n) for n in block)
    counts = [128 // height, 128 // width]
    (piece,) = scales["pieces"]
    (fill,) = scales["fills"]
    sizes = [counts[0], 4 - counts[1]]
    changed = scales | {
        "shape": [counts[0], 4],
        "pieces": [piece | {"extent": counts}],
        "fills": [fill | {"sizes": sizes, "offset": counts[1]}],
    }
    buffers = [codes | {"encoding": encoding}, changed]
    found = found_in(case.manifest("receiver", "tp", 1, buffers))
    assert ("TS198", "codes in blocks of 128 x 128") in found


BEGIN = "pieces of codes that begin with a block, at multiples of 128 rows and columns"


@pytest.mark.parametrize(
    "case", [Case((64, 64), 128), Case((100, 100), 700), Case((128, 192, 64), 128, experts=2)]
)
def test_parts_that_begin_within_a_block_of_rows_are_refused(case: Case) -> None:
    """Gate and up of 192 rows each have two rows of scales each: no kernel finds those of up."""
    codes, scales = case.received()
    # Every part has blocks of its own, one after another.
    blocks = [-(-rows // 128) for rows in case.rows]
    words = scales["shape"][-1]
    scales["shape"][-2] = sum(blocks)
    for n, piece in enumerate(scales["pieces"]):
        piece["offset"] = f"(expert * {sum(blocks)} + {sum(blocks[:n])}) * {words}"
    (fill,) = scales["fills"]
    fill["sizes"][-2] = sum(blocks)
    fill["strides"] = [sum(blocks) * words, words, 1][-len(fill["sizes"]) :]
    found = found_in(case.manifest("receiver", "tp", 1, [codes, scales]))
    assert set(found) == {("TS198", BEGIN)}


def test_a_shard_that_begins_within_a_block_is_refused() -> None:
    case = Case((192,), 128, receivers=2)
    codes, scales = case.received()
    for piece in (*codes["pieces"], *scales["pieces"]):
        piece["origin"] = [0, 0]
    scales["pieces"][0] |= {"start": ["tp * 192 // 128", 0], "extent": [2, 1]}
    found = found_in(case.manifest("receiver", "tp", 2, [codes, scales]))
    assert found == [("TS198", BEGIN)]


def test_scales_that_are_not_where_their_codes_are_are_refused() -> None:
    case = Case((128, 128), 512)
    codes, scales = case.received()
    first, second = scales["pieces"]
    first["offset"], second["offset"] = second["offset"], first["offset"]
    found = found_in(case.manifest("receiver", "tp", 1, [codes, scales]))
    assert found == [("TS198", "every scale where its block of codes is")] * 2


def test_transposed_codes_are_refused() -> None:
    case = Case((128,), 128)
    (piece,) = case.received()[0]["pieces"]
    turned = with_codes(case, pieces=[piece | {"strides": [1, 128]}])
    assert found_in(turned) == [
        ("TS198", "rows and columns of the tensor along those of the buffer")
    ]
    whole = with_codes(case, strides=[1, 128], pieces=[piece | {"strides": [1, 128]}])
    assert found_in(whole) == [("TS198", f"contiguous codes in {CODES!r}")]


def test_values_are_never_packed() -> None:
    assert found_in(with_codes(FUSED, layout="deepgemm_mn_major_ue8m0")) == [
        ("TS198", "encoding scale")
    ]


# --- binding --------------------------------------------------------------------------------------


def bound_to(case: Case, scales: Tensor) -> list[tuple[str, str | None]]:
    model = engine(case, 0)
    place(model, SCALES, Kind.PARAMETER, scales)
    try:
        bind(live_tensors(model), case.receiver, Side.RECEIVER, 0)
    except DiagnosticError as error:
        return [(found.code, found.expected) for found in error.diagnostics]
    return []


def test_an_engine_must_hold_the_words_that_its_codes_ask_for() -> None:
    case = Case((130,), 700, experts=3)
    right = torch.empty_strided((3, 130, 2), (264, 1, 132), dtype=torch.int32)
    assert bound_to(case, right) == []
    floats = torch.empty_strided((3, 130, 2), (264, 1, 132))
    assert bound_to(case, floats) == [("TS803", "torch.int32")]
    assert bound_to(case, right[:, :129]) == [("TS804", "(3, 130, 2)")]
    assert bound_to(case, torch.zeros(3, 130, 2, dtype=torch.int32)) == [("TS805", "(264, 1, 132)")]
    unpadded = torch.empty_strided((3, 130, 2), (260, 1, 130), dtype=torch.int32)
    assert bound_to(case, unpadded) == [("TS805", "(264, 1, 132)")]


def test_strides_of_a_single_column_of_words_do_not_matter() -> None:
    """SGLang 0.5.23 restores them (fp8_utils.py), since torch makes others of them."""
    for step in (1, 130, 132):
        column = torch.empty_strided((130, 1), (1, step), dtype=torch.int32)
        assert bound_to(Case((130,), 512), column) == []
