"""Axes of Megatron's ranks against Megatron-core's own groups."""

import importlib
from typing import Any

import pytest

from tests.megatron.missing import needs_megatron
from tranship.runtime.frameworks.megatron.mesh import ORDER, ParallelSizes, megatron_axes

pytestmark = needs_megatron


def groups(sizes: ParallelSizes, name: str, order: str) -> set[tuple[int, ...]]:
    """Ranks that differ on one axis alone, as Megatron-core makes its groups."""
    state: Any = importlib.import_module("megatron.core.parallel_state")
    etp = sizes.tp if sizes.etp is None else sizes.etp
    tp, cp, ep = (etp, 1, sizes.ep) if name in ("etp", "ep") else (sizes.tp, sizes.cp, 1)
    dp = sizes.world_size // (tp * cp * ep * sizes.pp)
    ranks = state.RankGenerator(tp=tp, ep=ep, dp=dp, pp=sizes.pp, cp=cp, order=order)
    token = "tp" if name == "etp" else name
    return {tuple(group) for group in ranks.get_ranks(token)}


@pytest.mark.parametrize(
    ("sizes", "order", "names"),
    [
        (ParallelSizes(8), ORDER, {"dp"}),
        (ParallelSizes(24, tp=2, cp=2, pp=3), ORDER, {"tp", "cp", "dp", "pp"}),
        (ParallelSizes(16, tp=2, pp=2, ep=4, etp=1), ORDER, {"tp", "dp", "pp", "etp", "ep"}),
        (ParallelSizes(16, tp=4, cp=2, ep=8, etp=2), ORDER, {"tp", "cp", "dp", "etp", "ep"}),
        (ParallelSizes(16, tp=2, pp=2, ep=2), ORDER, {"tp", "dp", "pp", "ep"}),
        (ParallelSizes(16, tp=2, pp=2, cp=2), "tp-pp-cp-dp-ep", {"tp", "cp", "dp", "pp"}),
        (ParallelSizes(4, tp=2, pp=2), "tp-pp", {"tp", "pp"}),
    ],
)
def test_ranks_that_differ_on_one_axis_are_one_of_its_groups(
    sizes: ParallelSizes, order: str, names: set[str]
) -> None:
    axes = {axis.name: axis for axis in megatron_axes(sizes, order)}
    assert names >= axes.keys() >= names - {"etp"}
    for name, axis in axes.items():
        found: dict[int, list[int]] = {}
        for rank in range(sizes.world_size):
            coordinate = rank // axis.stride % axis.size
            found.setdefault(rank - coordinate * axis.stride, []).append(rank)
        assert {tuple(group) for group in found.values()} == groups(sizes, name, order)


@pytest.mark.parametrize(
    ("sizes", "order", "message"),
    [
        (ParallelSizes(12, tp=8), ORDER, "do not divide 12 ranks"),
        (ParallelSizes(8, tp=2, ep=3), ORDER, "do not divide 8 ranks"),
        (ParallelSizes(8, tp=2, pp=2), "tp-pp", "leaves out"),
        (ParallelSizes(16, tp=4, pp=2, ep=2, etp=1), "tp-cp-ep-pp-dp", "stages of their own"),
    ],
)
def test_sizes_that_fit_no_mesh_are_refused(sizes: ParallelSizes, order: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        megatron_axes(sizes, order)
