"""Regions and boxes against sets of addresses and elements, one by one."""

from collections import Counter
from collections.abc import Iterable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.schema.records import Ints
from tranship.schema.rules.tiling import Region, Spot, Tiling, place_values, tile
from tranship.schema.rules.union import Gap, SteppedBox, find_gap

STRIDES = [[1, 2, 4, 8, 16], [1, 3, 6, 12], [1, 2, 3, 5, 7, 11], [1, 4, 12, 48]]


def nests(sizes: Ints, strides: Ints) -> bool:
    span = 0
    for stride, size in sorted((t, s) for s, t in zip(sizes, strides, strict=True) if s > 1):
        if stride <= span:
            return False
        span += stride * (size - 1)
    return True


@st.composite
def regions(draw: st.DrawFn, offset: int = 20) -> Region:
    dims = draw(st.integers(0, 3))
    pool = draw(st.sampled_from(STRIDES))
    pairs = st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(pool)), min_size=dims, max_size=dims
    )
    chosen = draw(pairs.filter(lambda some: nests(*zip(*some, strict=True)) if some else True))
    sizes, strides = (tuple(column) for column in zip(*chosen, strict=True)) if dims else ((), ())
    return Region(draw(st.integers(0, offset)), sizes, strides)


def addresses(region: Region) -> list[int]:
    return [
        region.offset + sum(i * s for i, s in zip(index, region.strides, strict=True))
        for index in product(*map(range, region.sizes))
    ]


def spot(addresses: Iterable[int]) -> Spot | None:
    some = sorted(addresses)
    return Spot(len(some), some[0]) if some else None


@settings(max_examples=300, deadline=None)
@given(regions(offset=0), st.lists(regions(), max_size=4))
def test_tilings_agree_with_addresses(buffer: Region, parts: list[Region]) -> None:
    memory, held = set(addresses(buffer)), Counter(a for part in parts for a in addresses(part))
    assert tile(buffer, parts) == Tiling(
        outside=spot(held.keys() - memory),
        repeated=spot(a for a, count in held.items() if count > 1),
        missing=spot(memory - held.keys()),
    )


@settings(max_examples=100, deadline=None)
@given(regions())
def test_the_element_at_an_address_is_found(region: Region) -> None:
    indices = {a: i for a, i in zip(addresses(region), product(*map(range, region.sizes)),
                                    strict=True)}  # fmt: skip
    assert {a: region.index(a) for a in range(200)} == {a: indices.get(a) for a in range(200)}


def test_large_interleaved_regions_are_compared_exactly() -> None:
    # 2**40 elements: even and odd columns of 2**20 rows, then one odd column too many.
    rows, columns = 2**20, 2**20
    memory = Region(0, (rows, columns), (columns, 1))
    even = Region(0, (rows, columns // 2), (columns, 2))
    odd = Region(1, (rows, columns // 2), (columns, 2))
    assert tile(memory, [even, odd]) == Tiling(None, None, None)
    wider = Region(0, (rows, columns // 2), (columns, 1))
    assert tile(memory, [even, wider]) == Tiling(
        None, Spot(rows * columns // 4, 0), Spot(rows * columns // 4, columns // 2 + 1)
    )


def test_strides_that_do_not_divide_are_decided_while_there_are_few_runs() -> None:
    def halves(size: int) -> tuple[Region, list[Region]]:
        return Region(0, (6 * size,), (1,)), [Region(0, (size,), (2,)), Region(1, (size,), (3,))]

    few, many = halves(2**10), halves(2**20)
    assert not place_values([few[0], *few[1]])
    assert tile(*few) is not None
    assert tile(*many) is None


@st.composite
def holdings(draw: st.DrawFn) -> tuple[Ints, list[SteppedBox]]:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    boxes = list[SteppedBox]()
    for _ in range(draw(st.integers(0, 6))):
        step = tuple(draw(st.sampled_from([1, 1, 2, 3, 4])) for _ in shape)
        start = tuple(draw(st.integers(0, max(n - 1, 0))) for n in shape)
        most = [-((s - n) // p) for s, n, p in zip(start, shape, step, strict=True)]
        boxes.append(SteppedBox(start, tuple(draw(st.integers(0, m)) for m in most), step))
    return shape, boxes


def elements(box: SteppedBox) -> Iterable[Ints]:
    spans = zip(box.start, box.extent, box.step, strict=True)
    return product(*(range(start, start + step * count, step) for start, count, step in spans))


@settings(max_examples=100, deadline=None)
@given(holdings())
def test_gaps_agree_with_elements(case: tuple[Ints, list[SteppedBox]]) -> None:
    shape, boxes = case
    left = set(product(*map(range, shape))) - {e for box in boxes for e in elements(box)}
    gap = find_gap(shape, boxes)
    assert gap == (Gap(len(left), gap.element) if gap and gap.element in left else None)
    assert (gap is None) == (not left)


def test_boxes_of_too_many_steps_are_left_undecided() -> None:
    boxes = [SteppedBox((0,), (1,), (step,)) for step in (61, 67, 71)]
    with pytest.raises(OverflowError):
        find_gap((1000,), boxes)
