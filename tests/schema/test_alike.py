"""Every index value and every rank is like one that stands for it, as far as anything is read."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tranship.schema import indexset
from tranship.schema.alike import Kinds, Reader, kinds, largest_parts, reader
from tranship.schema.expression import Constant, evaluate, parse, substitute, variables
from tranship.schema.manifest import Axis, IntExpression, Side
from tranship.schema.mesh import RANK, coordinates, table_arrays
from tranship.schema.plan import PlanSide

DOMAINS = {"a": ("0..7", "0..3", "2,5..7"), "b": ("0..5", "1..2", "0,3")}
TABLES = {"stage": (0, 0, 0, 1, 1, 2, 2, 2), "local": (0, 1, 2, 0, 1, 0, 1, 2)}
AXES = {
    "inner last": (Axis(name="pp", size=3, stride=2), Axis(name="tp", size=2, stride=1)),
    "overlapping": (Axis(name="pp", size=3, stride=2), Axis(name="tp", size=3, stride=1)),
    "views": (
        Axis(name="pp", size=3, stride=4),
        Axis(name="tp", size=4, stride=1),
        Axis(name="view", size=2, stride=2),
    ),
    "uneven": (Axis(name="pp", size=4, stride=1), Axis(name="tp", size=3, stride=2)),
}
LOOKUP = table_arrays(TABLES)


def _side(shape: str) -> PlanSide:
    world = 12 if shape == "views" else 6
    return PlanSide(
        manifest="sha256:" + "0" * 64, world_size=world, axes=AXES[shape], tables=TABLES
    )


@st.composite
def expressions(draw: DrawFn, names: tuple[str, ...]) -> IntExpression:
    """Draw an expression that tells few values of its names apart."""
    terms: list[str] = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(names))
        other = draw(st.sampled_from(names))
        number = draw(st.integers(1, 4))
        forms = [
            f"{name} // {number}",
            f"{name} % {number}",
            f"min({name}, {number})",
            f"max({name} - {other}, 0)",
            f"({name} // 2 + {other}) % {number}",
            f"({name} % 2) * ({other} // {number})",
            f"local[{name} % 8]",
        ]
        terms.append(draw(st.sampled_from(forms)))
    return " + ".join(terms)


@st.composite
def readers(draw: DrawFn, side: Side, mesh: PlanSide, condition: str | None) -> Reader:
    """Draw a reader; every one of a test may be under the same `condition` on pp."""
    named = draw(st.sampled_from([("a",), ("a", "b"), ("b",)]))
    if condition is not None and "a" not in named:
        named = ("a",)
    indices = {name: draw(st.sampled_from(DOMAINS[name])) for name in named}
    axes = [axis.name for axis in mesh.axes]
    at: dict[str, IntExpression] = {} if condition is None else {"pp": condition}
    if draw(st.integers(0, 3)) == 0:
        at[draw(st.sampled_from([*axes, RANK]))] = draw(expressions(named))
    seen = [axis for axis in axes if axis != "pp" or draw(st.booleans())]
    seen += [RANK] if draw(st.integers(0, 5)) == 0 else []
    pool = (*named, *named, *seen)
    values = draw(st.lists(expressions(pool), max_size=2))
    return reader(side, indices, at, values)


@st.composite
def problems(draw: DrawFn) -> tuple[list[Reader], dict[Side, PlanSide]]:
    """Draw readers of both sides, most often all of a side under one condition."""
    meshes = {side: _side(draw(st.sampled_from(sorted(AXES)))) for side in Side}
    found: list[Reader] = []
    for side, mesh in meshes.items():
        conditions = st.sampled_from(["stage[a]", "a // 3", "a % 3", None])
        condition = draw(conditions)
        count = draw(st.integers(1, 3))
        found += [draw(readers(side, mesh, condition)) for _ in range(count)]
    return found, meshes


def _sets(every: list[Reader]) -> dict[str, list[str]]:
    names = {name for one in every for name in one.indices}
    return {
        name: sorted({one.indices[name] for one in every if name in one.indices})
        for name in sorted(names)
    }


def _seen(
    every: list[Reader], side: Side, mesh: PlanSide, point: dict[str, int], rank: int
) -> tuple[object, ...]:
    """What each reader sees on a rank: its values, or None where it does not exist."""
    found: list[object] = []
    axes = coordinates(mesh.axes, np.array([rank], dtype=np.int64))
    place = {name: int(value[0]) for name, value in axes.items()}
    for one in every:
        if one.side is not side:
            continue
        inside = all(point[n] in indexset.parse(text) for n, text in one.indices.items())
        own = {name: point[name] for name in one.indices}
        if inside and all(
            place[axis] == evaluate(value, own, LOOKUP) for axis, value in one.at.items()
        ):
            found.append(tuple(int(evaluate(v, {**place, **own}, LOOKUP)) for v in one.values))
        else:
            found.append(None)
    return tuple(found)


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_every_value_and_rank_has_one_that_stands_for_it(
    problem: tuple[list[Reader], dict[Side, PlanSide]],
) -> None:
    every, meshes = problem
    found = kinds(every, meshes, {side: LOOKUP for side in Side})
    sets = _sets(every)
    members = {
        name: sorted({value for text in texts for value in indexset.parse(text)})
        for name, texts in sets.items()
    }
    points = [dict(zip(members, point, strict=True)) for point in product(*members.values())]
    for side, mesh in meshes.items():
        views = {
            tuple(point.values()): [
                _seen(every, side, mesh, point, rank) for rank in range(mesh.world_size)
            ]
            for point in points
        }
        _assert_values_stand(found, members, sets, views)
        by_rank = {
            rank: tuple(seen[rank] for seen in views.values()) for rank in range(mesh.world_size)
        }
        standing = {by_rank[rank] for rank in found.ranks[side].tolist()}
        assert set(by_rank.values()) == standing


def _assert_values_stand(
    found: Kinds,
    members: dict[str, list[int]],
    sets: dict[str, list[str]],
    views: dict[tuple[int, ...], list[tuple[object, ...]]],
) -> None:
    """That what the ranks see at any value, at all values of other indices, one in its place has.

    Which rank sees what is left out, since ranks of two stages may be exchanged.
    """
    for place, name in enumerate(members):

        def profile(value: int, place: int = place, name: str = name) -> object:
            held = tuple(value in indexset.parse(text) for text in sets[name])
            seen = {
                (*point[:place], *point[place + 1 :]): frozenset(ranks)
                for point, ranks in views.items()
                if point[place] == value
            }
            return held, tuple(sorted(seen.items(), key=lambda item: item[0]))

        profiles = {value: profile(value) for value in members[name]}
        standing = [profiles[value] for value in found.indices[name].tolist()]
        assert all(profiles[value] in standing for value in members[name])


def test_stages_have_no_names_where_nothing_reads_them() -> None:
    mesh = _side("inner last")
    meshes, lookups = {Side.SENDER: mesh, Side.RECEIVER: mesh}, {side: LOOKUP for side in Side}

    def representatives(*own: Reader) -> list[int]:
        return kinds(own, meshes, lookups).indices["a"].tolist()

    alone = reader(Side.SENDER, {"a": "0..7"}, {"pp": "stage[a]"}, ["tp * 2"])
    assert representatives(alone) == [0]
    reads = reader(Side.SENDER, {"a": "0..7"}, {"pp": "stage[a]"}, ["pp"])
    assert representatives(reads) == representatives(alone, reads) == [0, 3, 5]
    ranks = reader(Side.SENDER, {"a": "0..7"}, {"pp": "stage[a]"}, [RANK])
    assert representatives(ranks) == [0, 3, 5]
    free = reader(Side.SENDER, {"a": "0..7"}, {}, ["tp"])
    assert representatives(alone, free) == [0, 3, 5]
    missing = reader(Side.SENDER, {"a": "0..7"}, {"pp": "stage[a] + 1"}, [])
    assert representatives(missing) == [0, 5]
    overlapping = {side: _side("overlapping") for side in Side}
    assert kinds([alone], overlapping, lookups).indices["a"].tolist() == [0, 3, 5]


def test_a_condition_on_an_axis_that_depends_on_another_has_a_name() -> None:
    """Ranks of stages 0 and 1 have the first of three places; those of stage 2 have the others."""
    at: dict[str, IntExpression] = {"pp": "stage[a]", "tp": 0}
    alone = reader(Side.SENDER, {"a": "0..7"}, at, [])
    meshes, lookups = {Side.SENDER: _side("overlapping")}, {Side.SENDER: LOOKUP}
    assert kinds([alone], meshes, lookups).indices["a"].tolist() == [0, 3, 5]
    nameless = {Side.SENDER: _side("inner last")}
    assert kinds([alone], nameless, lookups).indices["a"].tolist() == [0]


def test_values_apart_stand_for_themselves() -> None:
    mesh = _side("inner last")
    alone = reader(Side.SENDER, {"a": "0..7"}, {}, ["a // 4"])
    meshes, lookups = {Side.SENDER: mesh}, {Side.SENDER: LOOKUP}
    for apart, expected in (
        ({}, [0, 4]),
        ({"a": {2, 4}}, [0, 2, 4, 5]),
        ({"a": None}, list(range(8))),
    ):
        assert kinds([alone], meshes, lookups, apart=apart).indices["a"].tolist() == expected
    split = kinds([alone], meshes, lookups, domains=[{"a": "1..5"}])
    assert split.indices["a"].tolist() == [0, 1, 4, 6]


@settings(deadline=None, max_examples=200)
@given(text=expressions(("a", "b", "tp")))
def test_the_largest_parts_of_an_index_decide_an_expression(text: str) -> None:
    expression = parse(text)
    parts = sorted(largest_parts(expression, "a"), key=str)
    assert all(variables(part) == {"a"} for part in parts)
    values: dict[tuple[int, ...], tuple[int, ...]] = {}
    for a in range(8):
        key = tuple(int(evaluate(part, {"a": a}, LOOKUP)) for part in parts)
        fixed = substitute(expression, {"a": Constant(a)})
        others = product(range(6), range(3))
        seen = tuple(int(evaluate(fixed, {"b": b, "tp": tp}, LOOKUP)) for b, tp in others)
        assert values.setdefault(key, seen) == seen
