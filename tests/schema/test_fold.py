import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.schema.declarations import (
    Box,
    buffer,
    declare,
    dense_tensors,
    fsdp,
    megatron_moe,
    moe_tensors,
    piece,
    sglang_moe,
)
from tests.schema.strategies import declarations, manifests
from tranship.schema.check import check_manifest
from tranship.schema.codec import Source, dump, parse_json, validate
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Axis, BufferFamily, Kind, Manifest, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    FillRecord,
    Ints,
    RoleRecord,
    TensorRecord,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "fold"

# 4096 rows over 24 ranks are 23 chunks of 171 and one of 163; 128 rows leave two ranks without any.
REALISTIC: dict[str, Callable[[], Declaration]] = {
    "sglang_moe": sglang_moe,
    "megatron_moe": megatron_moe,
    "fsdp3": lambda: fsdp(dense_tensors(4, 4096, 12288, 1000), 3),
    "fsdp24": lambda: fsdp(dense_tensors(4, 4096, 12288, 1000), 24),
}


@pytest.mark.parametrize("name", REALISTIC)
def test_realistic_declarations_fold_into_the_committed_families(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    data = dump(fold(REALISTIC[name]()))
    if os.environ.get("TRANSHIP_UPDATE_GOLDEN"):
        path.write_bytes(data)
    assert data.decode() == path.read_text()


@pytest.mark.parametrize("name", REALISTIC)
def test_realistic_declarations_come_back_and_are_without_errors(name: str) -> None:
    declaration = REALISTIC[name]()
    manifest = fold(declaration)
    assert expand(manifest) == declaration
    assert check_manifest(manifest) == ()


def test_layers_alike_are_one_family() -> None:
    declaration = fsdp(dense_tensors(36, 4096, 12288, 151936), 8)
    manifest = fold(declaration)
    assert len(declaration.buffers) == 3192
    assert (len(manifest.tensors), len(manifest.buffers)) == (14, 14)
    assert expand(manifest) == declaration


def shuffled(declaration: Declaration, random: Random) -> Declaration:
    buffers = [
        replace(
            record,
            pieces=tuple(random.sample(record.pieces, len(record.pieces))),
            fills=tuple(random.sample(record.fills, len(record.fills))),
        )
        for record in declaration.buffers
    ]
    random.shuffle(buffers)
    tensors = random.sample(declaration.tensors, len(declaration.tensors))
    return replace(declaration, tensors=tuple(tensors), buffers=tuple(buffers))


def assert_laws(declaration: Declaration, random: Random) -> None:
    manifest = fold(declaration)
    assert expand(manifest) == declaration
    data = dump(manifest)
    text = data.decode()
    assert validate(Manifest, parse_json(text, "a.json"), Source("a.json", text)) == manifest
    assert dump(fold(shuffled(declaration, random))) == data


@given(declarations(), st.randoms(use_true_random=False))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_records_without_regularity_come_back(declaration: Declaration, random: Random) -> None:
    assert_laws(declaration, random)


@given(manifests(), st.randoms(use_true_random=False))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_declared_families_come_back(manifest: Manifest, random: Random) -> None:
    assert_laws(expand(manifest), random)


def damaged(declaration: Declaration, random: Random) -> Declaration:
    """A few records are lost, or differ from all others."""
    buffers = list(declaration.buffers)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(buffers))
        record = buffers[place]
        first, *others = record.pieces or (None,)
        moved = replace(first, offset=first.offset + random.randint(1, 9)) if first else None
        buffers[place : place + 1] = random.choice(
            [
                [],
                [replace(record, pieces=tuple(one for one in others if one))],
                [replace(record, pieces=tuple(sorted(one for one in (moved, *others) if one)))],
                [replace(record, dtype=DType.F32)],
                [replace(record, shape=tuple(size + 1 for size in record.shape))],
                [replace(record, fills=(*record.fills, FillRecord(10**6, (1,), (1,), 1)))],
            ]
        )
    return replace(declaration, buffers=tuple(sorted(buffers)))


@pytest.mark.parametrize("name", ["sglang_moe", "megatron_moe"])
@given(random=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_declarations_come_back(name: str, random: Random) -> None:
    assert_laws(damaged(REALISTIC[name](), random), random)


# What families look like.


def axis(name: str, size: int, stride: int = 1) -> Axis:
    return Axis(name=name, size=size, stride=stride)


def families(
    axes: list[Axis], ranks: int, tensors: dict[str, Ints], buffers: list[BufferRecord]
) -> Manifest:
    """Fold the declaration, after making sure that it comes back."""
    declaration = declare(Side.RECEIVER, axes, ranks, tensors, buffers, "test")
    manifest = fold(declaration)
    assert expand(manifest) == declaration
    return manifest


def only(manifest: Manifest) -> BufferFamily:
    (family,) = manifest.buffers
    return family


def test_replicated_heads_divide_the_axis() -> None:
    name = "layers.0.k_proj.weight"
    buffers = [
        buffer(rank, name, (64, 8), [(name, (rank // 2 * 64, 0), (64, 8), 0)]) for rank in range(4)
    ]
    family = only(families([axis("tp", 4)], 4, {name: (128, 8)}, buffers))
    assert family.pieces[0].start == ("tp // 2 * 64", 0)
    assert family.name == family.pieces[0].tensor == "layers.{layer}.k_proj.weight"
    assert family.indices == {"layer": "0"}


def test_the_axis_that_fits_most_simply_is_named() -> None:
    tensors = {f"experts.{expert}.up.weight": (32, 8) for expert in range(8)}
    buffers: list[BufferRecord] = []
    for rank in range(8):
        boxes: list[Box] = [
            (f"experts.{rank // 2 * 2 + slot}.up.weight", (rank % 2 * 16, 0), (16, 8), slot * 128)
            for slot in range(2)
        ]
        buffers.append(buffer(rank, "experts.w13_weight", (2, 16, 8), boxes))
    axes = [axis("tp", 8), axis("ep", 4, 2), axis("moe_tp", 2)]
    (part,) = only(families(axes, 8, tensors, buffers)).pieces
    assert (part.indices, part.at) == ({"expert": "0..7"}, {"ep": "expert // 2"})
    assert (part.start, part.offset) == (("moe_tp * 16", 0), "expert % 2 * 128")


def test_strided_shards_are_a_sum_over_two_axes() -> None:
    name = "q_proj.weight"
    buffers: list[BufferRecord] = []
    for rank in range(8):
        tp, start = rank % 2, min(rank // 2 * 32, 125)
        rows = min(32, 125 - start)
        buffers.append(buffer(rank, name, (rows, 8), [(name, (tp * 125 + start, 0), (rows, 8), 0)]))
    axes = [axis("tp", 2), axis("fsdp", 4, 2)]
    (part,) = only(families(axes, 8, {name: (250, 8)}, buffers)).pieces
    assert part.start == ("tp * 125 + fsdp * 32", 0)
    assert part.extent == ("min(32, 125 - fsdp * 32)", 8)


def test_expert_placement_is_a_table_per_layer() -> None:
    random = Random(5)
    tensors: dict[str, Ints] = {}
    buffers: list[BufferRecord] = []
    for layer in range(3):
        placed = random.sample(range(16), 16)
        experts = [f"layers.{layer}.experts.{expert}.up.weight" for expert in placed]
        tensors |= dict.fromkeys(experts, (4, 8))
        for rank in range(4):
            boxes: list[Box] = [
                (experts[rank * 4 + slot], (0, 0), (4, 8), slot * 32) for slot in range(4)
            ]
            buffers.append(buffer(rank, f"layers.{layer}.w13_weight", (4, 4, 8), boxes))
    manifest = families([axis("ep", 4)], 4, tensors, buffers)
    assert [family.indices for family in manifest.buffers] == [{"layer": f"{n}"} for n in range(3)]
    assert [family.pieces[0].at for family in manifest.buffers] == [
        {"ep": f"ep_by_expert{suffix}[expert]"} for suffix in ("", "2", "3")
    ]
    assert [family.pieces[0].offset for family in manifest.buffers] == [
        f"offset_by_expert{suffix}[expert]" for suffix in ("", "2", "3")
    ]


def test_uneven_stages_share_their_tables() -> None:
    starts = [0, 2, 5, 9, 10]
    tensors: dict[str, Ints] = {}
    buffers: list[BufferRecord] = []
    for stage in range(4):
        for local, layer in enumerate(range(starts[stage], starts[stage + 1])):
            for part in ("up", "down") if layer else ("up",):
                tensor = f"model.layers.{layer}.{part}.weight"
                tensors[tensor] = (8,)
                name = f"decoder.layers.{local}.{part}.weight"
                buffers.append(buffer(stage, name, (8,), [(tensor, (0,), (8,), 0)]))
    manifest = families([axis("pp", 4)], 4, tensors, buffers)
    assert manifest.tables == {
        "pp_by_layer": (0, 0, 1, 1, 1, 2, 2, 2, 2, 3),
        "local_layer": (0, 1, 0, 1, 2, 0, 1, 2, 3, 0),
    }
    down, up = manifest.buffers
    assert (down.indices, up.indices) == ({"layer": "1..9"}, {"layer": "0..9"})
    assert down.name == "decoder.layers.{local_layer[layer]}.down.weight"
    assert down.at == up.at == {"pp": "pp_by_layer[layer]"}


def test_layers_that_differ_are_other_families() -> None:
    tensors: dict[str, Ints] = {}
    buffers: list[BufferRecord] = []
    for layer in range(6):
        name = f"layers.{layer}.up.weight"
        tensors[name] = (64 if layer < 2 else 16, 8)
        buffers.append(buffer(0, name, tensors[name], [(name, (0, 0), tensors[name], 0)]))
    manifest = families([], 1, tensors, buffers)
    for kind in (manifest.tensors, manifest.buffers):
        assert [(family.indices["layer"], family.shape) for family in kind] == [
            ("0..1", (64, 8)),
            ("2..5", (16, 8)),
        ]


def test_one_expert_per_rank_stays_an_index_of_the_piece() -> None:
    tensors = {f"layers.0.experts.{expert}.up.weight": (4,) for expert in range(4)}
    buffers = [
        buffer(
            rank,
            "layers.0.w1_weight",
            (1, 4),
            [(f"layers.0.experts.{rank}.up.weight", (0,), (4,), 0)],
        )
        for rank in range(4)
    ]
    family = only(families([axis("ep", 4)], 4, dict(tensors), buffers))
    assert family.indices == {"layer": "0"}
    assert (family.pieces[0].indices, family.pieces[0].at) == ({"expert": "0..3"}, {"ep": "expert"})


def test_buffers_without_pieces_are_indexed_by_their_own_numbers() -> None:
    role = RoleRecord("constant", reason="computed when built")
    buffers = [
        replace(buffer(rank, f"blocks.{block}.cache", (4,), []), kind=Kind.BUFFER, role=role)
        for rank in range(2)
        for block in range(3 + 2 * rank)
    ]
    manifest = families([axis("pp", 2)], 2, {}, buffers)
    assert [(family.indices, family.at) for family in manifest.buffers] == [
        ({"block": "0..2"}, {}),
        ({"block": "3..4"}, {"pp": 1}),
    ]


def test_a_buffer_on_some_ranks_only_names_the_axis_that_tells() -> None:
    buffers = [buffer(rank, "w", (4,), [("w", (0,), (4,), 0)]) for rank in (0, 1, 3, 4, 5, 7)]
    manifest = families([axis("tp", 4), axis("dp", 2, 4)], 8, {"w": (4,)}, buffers)
    assert [family.at for family in manifest.buffers] == [{"tp": 0}, {"tp": 1}, {"tp": 3}]


def test_a_single_rank_needs_no_at() -> None:
    declaration = megatron_moe()
    for rank in (0, 5):
        own = tuple(record for record in declaration.buffers if record.rank == rank)
        one = replace(declaration, ranks=(rank,), buffers=own)
        manifest = fold(one)
        assert manifest.ranks == str(rank)
        assert all(not family.at for family in manifest.buffers)
        assert expand(manifest) == one


def test_tensors_fold_with_their_ties() -> None:
    tensors = [TensorRecord(f"layers.{n}.a.weight", (4,)) for n in range(4)]
    tensors += [
        TensorRecord(f"layers.{n}.b.weight", (4,), f"layers.{n}.a.weight") for n in (1, 2, 3)
    ]
    tensors += [TensorRecord(f"layers.{n}.c.weight", (4,), "layers.0.a.weight") for n in (1, 2)]
    declaration = Declaration(Side.SENDER, 1, (0,), (), tuple(sorted(tensors)), ())
    manifest = fold(declaration)
    assert expand(manifest) == declaration
    assert [(family.indices, family.tied_to) for family in manifest.tensors] == [
        ({"layer": "0..3"}, None),
        ({"layer": "1..3"}, "layers.{layer}.a.weight"),
        ({"layer": "1..2"}, "layers.{0}.a.weight"),
    ]


def test_pieces_of_one_tensor_are_counted_by_group() -> None:
    """Three groups on two ranks, each in memory followed by as much of something else."""
    fillers = [FillRecord(4 + 8 * slot, (4,), (1,), reason="not ours") for slot in range(2)]
    boxes: list[list[Box]] = [[("w", (0,), (4,), 0), ("w", (4,), (4,), 8)], [("w", (8,), (4,), 0)]]
    buffers = [
        replace(buffer(rank, "w", (16,), own), fills=tuple(fillers[: len(own)]))
        for rank, own in enumerate(boxes)
    ]
    family = only(families([axis("tp", 2)], 2, {"w": (12,)}, buffers))
    assert [(part.at, part.start, part.offset) for part in family.pieces] == [
        ({}, ("tp * 8",), 0),
        ({"tp": 0}, (4,), 8),
    ]
    assert [(fill.at, fill.offset) for fill in family.fills] == [({}, 4), ({"tp": 0}, 12)]


def test_a_flat_buffer_cut_inside_rows_has_a_family_for_each_cut() -> None:
    buffers: list[BufferRecord] = []
    for layer in range(3):
        name = f"layers.{layer}.w"
        head = piece(name, (0, 0), (2, 3), 0, (3, 1)), piece(name, (2, 0), (1, 1), 6, (3, 1))
        tail = piece(name, (2, 1), (1, 2), 0, (3, 1)), piece(name, (3, 0), (1, 3), 2, (3, 1))
        for rank, pieces in enumerate((head, tail)):
            buffers.append(
                replace(buffer(rank, f"flat.{layer}", (7 - 2 * rank,), []), pieces=pieces)
            )
    tensors = {f"layers.{layer}.w": (4, 3) for layer in range(3)}
    family = only(families([axis("fsdp", 2)], 2, dict(tensors), buffers))
    assert family.indices == {"layer": "0..2"}
    assert {part.tensor for part in family.pieces} == {"layers.{layer}.w"}


def test_tensors_fold_without_buffers() -> None:
    manifest = fold(declare(Side.SENDER, [], 1, moe_tensors(), [], "test"))
    assert len(manifest.tensors) == 13
