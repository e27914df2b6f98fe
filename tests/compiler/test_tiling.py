"""The tiling identity against counting, element by element."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tranship.compiler.proofs.tiling import MAX_FACTORS, Regions, differences, regions

DIMS = 3

Region = tuple[int, int, list[int], list[int], int]
"""Owner, offset, sizes, strides, weight."""

single = st.tuples(
    st.integers(0, 2),
    st.integers(-3, 12),
    st.lists(st.integers(0, 4), min_size=DIMS, max_size=DIMS),
    st.lists(st.sampled_from([-2, -1, 0, 1, 2, 3, 4, 6, 12]), min_size=DIMS, max_size=DIMS),
    st.sampled_from([1, 1, -1]),
)


def _table(members: list[Region]) -> Regions:
    owner, offset, sizes, strides, weight = zip(*members, strict=True)
    return Regions(
        *(np.array(part, dtype=np.int64) for part in (owner, offset, sizes, strides, weight))
    )


def _counted(members: list[Region]) -> dict[int, tuple[int, int]]:
    """Of every owner whose elements do not cancel, the first such address and the sum there."""
    count: Counter[tuple[int, int]] = Counter()
    for owner, offset, sizes, strides, weight in members:
        for index in np.ndindex(*sizes):
            place = offset + sum(k * stride for k, stride in zip(index, strides, strict=True))
            count[owner, place] += weight
    found: dict[int, tuple[int, int]] = {}
    for (owner, place), excess in sorted(count.items()):
        if excess:
            found.setdefault(owner, (place, excess))
    return found


def _halves(member: Region, dim: int) -> list[Region]:
    """A region cut in two along one dim."""
    owner, offset, sizes, strides, weight = member
    half = sizes[dim] // 2
    first, second = list(sizes), list(sizes)
    first[dim], second[dim] = half, sizes[dim] - half
    return [
        (owner, offset, first, strides, weight),
        (owner, offset + half * strides[dim], second, strides, weight),
    ]


@given(
    members=st.lists(single, min_size=1, max_size=6),
    cut=st.integers(0, DIMS - 1),
    moved=st.sampled_from([0, 0, 1, 2]),
)
def test_differences_are_those_that_counting_finds(
    members: list[Region], cut: int, moved: int
) -> None:
    opposed: list[Region] = [
        (owner, offset, sizes, strides, -weight)
        for owner, offset, sizes, strides, weight in members
    ]
    owner, offset, sizes, strides, weight = opposed[-1]
    opposed[-1] = (owner, offset + moved, sizes, strides, weight)
    every = [half for member in members for half in _halves(member, cut)] + opposed
    found = differences([_table(every[:1]), _table(every[1:])])
    rows = zip(found.owner.tolist(), found.address.tolist(), found.excess.tolist(), strict=True)
    assert {owner: (address, excess) for owner, address, excess in rows} == _counted(every)
    assert not len(found.unknown)


def test_an_owner_with_too_many_strides_is_named_and_the_others_are_compared() -> None:
    many = MAX_FACTORS + 1
    odd = regions(
        np.zeros(many, dtype=np.int64),
        np.arange(many) * 1000,
        np.full((many, 1), 2),
        np.arange(2, 2 + many).reshape(-1, 1),
    )
    other = regions(np.array([1]), np.array([7]), np.array([[3]]), np.array([[1]]))
    found = differences([odd, other])
    assert found.unknown.tolist() == [0]
    assert (found.owner.tolist(), found.address.tolist(), found.excess.tolist()) == ([1], [7], [1])
