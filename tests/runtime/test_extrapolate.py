"""All ranks of an engine, derived from some: against manifests that say what each of them holds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from tests.models.produced import made
from tranship.runtime.frameworks.tracing.extrapolate import (
    basis,
    declare_all,
    digits,
    find_pattern,
    proof,
    sample,
)
from tranship.schema.expand import expand
from tranship.schema.indexset import to_text
from tranship.schema.manifest import Axis, Manifest
from tranship.schema.records import Declaration

EVEN = {"vocab_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32}


def told(manifest: Manifest) -> dict[int, Declaration]:
    """Return what each of the ranks says that are traced."""
    ranks = {*basis(manifest.axes, manifest.world_size), *proof(manifest.axes, manifest.world_size)}
    return {rank: expand(manifest, [rank]) for rank in sorted(ranks)}


@pytest.mark.parametrize(
    ("name", "fp8", "options", "changes"),
    [
        ("qwen3", False, {"tp_size": 32}, {}),
        ("qwen3_moe", True, {"tp_size": 32, "ep_size": 32}, {"num_experts": 64}),
        (
            "qwen3_moe",
            False,
            {"tp_size": 32, "ep_size": 8},
            {"num_experts": 64, "intermediate_size": 4096, "moe_intermediate_size": 1024},
        ),
        (
            "deepseek_v3",
            False,
            {"tp_size": 32, "ep_size": 16},
            {"n_routed_experts": 128, "moe_intermediate_size": 4096, "intermediate_size": 4096},
        ),
    ],
)
def test_some_ranks_tell_what_all_of_them_hold(
    tmp_path: Path, name: str, fp8: bool, options: dict[str, int], changes: dict[str, int]
) -> None:
    manifest = made(tmp_path, name, "sglang", options, fp8=fp8, **EVEN, **changes)
    traced = told(manifest)
    assert len(traced) <= 10
    pattern = find_pattern(traced)
    assert pattern is not None
    for rank in range(manifest.world_size):
        assert pattern.declaration(rank).buffers == expand(manifest, [rank]).buffers
    whole, wanted = declare_all(pattern, traced), expand(manifest)
    assert (whole.ranks, whole.buffers) == (wanted.ranks, wanted.buffers)
    assert (whole.tensors, whole.quantization) == (wanted.tensors, wanted.quantization)
    assert whole.framework is not None
    assert whole.framework.traced == to_text(sorted(traced))


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        # The last rank has rows of padding; four neighbours share a key-value head.
        ({"tp_size": 32}, {"vocab_size": 1000}),
        ({"tp_size": 32}, {"num_key_value_heads": 8}),
    ],
)
def test_ranks_that_are_not_alike_are_not_derived(
    tmp_path: Path, options: dict[str, int], changes: dict[str, int]
) -> None:
    manifest = made(tmp_path, "qwen3", "sglang", options, fp8=False, **(EVEN | changes))
    assert find_pattern(told(manifest)) is None


@pytest.mark.parametrize("ranks", [basis, proof])
@pytest.mark.parametrize("which", ["piece", "shape", "name"])
def test_one_rank_that_differs_is_noticed(
    tmp_path: Path, which: str, ranks: Callable[[Sequence[Axis], int], Sequence[int]]
) -> None:
    manifest = made(tmp_path, "qwen3", "sglang", {"tp_size": 32}, fp8=False, **EVEN)
    traced = told(manifest)
    rank = ranks(manifest.axes, 32)[1]
    first, *rest = traced[rank].buffers
    changed = {
        "piece": replace(first, pieces=(replace(first.pieces[0], offset=1),)),
        "shape": replace(first, shape=(first.shape[0] + 1, *first.shape[1:])),
        "name": replace(first, name="other"),
    }[which]
    assert find_pattern(traced | {rank: replace(traced[rank], buffers=(changed, *rest))}) is None


def placed(manifest: Manifest, place: Callable[[int], int]) -> dict[int, Declaration]:
    """Return what the traced ranks say of an engine whose rank `r` holds what is `place(r)`'s."""
    found: dict[int, Declaration] = {}
    for rank in told(manifest):
        theirs = expand(manifest, [place(rank)])
        buffers = tuple(replace(record, rank=rank) for record in theirs.buffers)
        found[rank] = replace(theirs, ranks=(rank,), buffers=buffers)
    return found


def test_any_two_groups_of_experts_that_are_exchanged_are_noticed(tmp_path: Path) -> None:
    options = {"tp_size": 32, "ep_size": 8}
    changes = {"num_experts": 64, "intermediate_size": 4096, "moe_intermediate_size": 1024}
    manifest = made(tmp_path, "qwen3_moe", "sglang", options, fp8=False, **EVEN, **changes)
    assert digits(manifest.axes, 32) == ((1, 4), (4, 8))
    assert find_pattern(placed(manifest, lambda rank: rank)) is not None
    for one, other in combinations(range(8), 2):
        groups = {one: other, other: one}

        def exchanged(rank: int, groups: dict[int, int] = groups) -> int:
            return groups.get(rank // 4, rank // 4) * 4 + rank % 4

        assert find_pattern(placed(manifest, exchanged)) is None, groups


@pytest.mark.parametrize("pair", [(2, 30), (4, 5), (16, 17), (8, 24), (15, 16)])
def test_neighbours_of_powers_of_two_that_are_exchanged_are_noticed(
    tmp_path: Path, pair: tuple[int, int]
) -> None:
    manifest = made(tmp_path, "qwen3", "sglang", {"tp_size": 32}, fp8=False, **EVEN)
    swapped = {pair[0]: pair[1], pair[1]: pair[0]}
    assert find_pattern(placed(manifest, lambda rank: swapped.get(rank, rank))) is None


MESHES: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "kimi k2": (128, {"tp": (1, 128), "ep": (1, 128)}),
    "two digits": (128, {"tp": (1, 128), "ep": (8, 16)}),
    "three digits": (128, {"tp": (1, 128), "ep": (4, 32), "dp": (32, 4)}),
    "halves": (64, {"tp": (1, 64), "a": (2, 32), "b": (4, 16), "c": (8, 8), "d": (16, 4)}),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_ten_ranks_show_ends_and_powers_of_two_of_every_axis(mesh: str) -> None:
    world, sizes = MESHES[mesh]
    axes = [Axis(name=name, stride=stride, size=size) for name, (stride, size) in sizes.items()]
    ranks = sample(axes, world)
    assert len(ranks) <= 10
    assert {0, world - 1} <= {*ranks}
    for stride, size in digits(axes, world):
        shown = {rank // stride % size for rank in ranks}
        powers = {1 << bit for bit in range(size.bit_length())}
        assert shown >= {coordinate for coordinate in powers if coordinate < size}
        assert shown >= {*range(size if size <= 8 else 0)}
        assert size <= 8 or any(size // 4 * 2 < each < size - 1 for each in shown), "in between"


def test_of_few_ranks_all_are_traced() -> None:
    assert sample([Axis(name="tp", size=16, stride=1)], 16) == tuple(range(16))


def test_coordinates_are_as_fine_as_the_axes_need() -> None:
    axes = [Axis(name="tp", size=32, stride=1), Axis(name="ep", size=8, stride=4)]
    axes.append(Axis(name="moe_tp", size=4, stride=1))
    assert digits(axes, 32) == ((1, 4), (4, 8))
    assert basis(axes, 32) == (0, 1, 4)
    assert 31 in proof(axes, 32)
    assert not {0, 1, 4} & set(proof(axes, 32))


def test_all_ranks_are_traced_where_axes_do_not_nest() -> None:
    axes = (Axis(name="a", stride=2, size=12), Axis(name="b", stride=3, size=2))
    assert sample(axes, 24) == tuple(range(24))
