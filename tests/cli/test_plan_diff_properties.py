"""A plan whose edges are only divided and named otherwise is no change; any other number is one."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.example import POLICY, engine, trainer
from tests.cli.test_diff_properties import renamed, split_indices
from tranship.cli.traffic import traffic_of
from tranship.compiler.diff import diff_plans
from tranship.compiler.pipeline import compile_transfer
from tranship.schema.check import check_plan
from tranship.schema.codec import Source, validate
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.moves import edge_moves
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options
from tranship.schema.wire import pack_messages

Json = Any


@pytest.fixture(scope="module")
def plan() -> TransferPlan:
    policy = Policy.model_validate_json(POLICY)
    return compile_transfer(trainer(), engine(), policy, None, Options(staging_bytes=1 << 19))


def members(plan: TransferPlan) -> dict[str, Json]:
    return json.loads(plan.model_dump_json(exclude_defaults=True))


def as_plan(data: dict[str, Json]) -> TransferPlan | None:
    """Read a plan; None if it is none, or one that does not fit together."""
    try:
        plan = validate(TransferPlan, data, Source("plan.json", ""))
    except DiagnosticError:
        return None
    return None if check_plan(plan) else plan


def test_plan_is_like_itself(plan: TransferPlan) -> None:
    assert diff_plans(plan, plan) == ()


def test_traffic_is_that_of_all_messages(plan: TransferPlan) -> None:
    moves = [edge_moves(plan, number) for number in range(len(plan.edges))]
    _, messages = pack_messages(plan.edges, moves)
    sent = {rank: 0 for rank in range(plan.sender.world_size)}
    taken = {rank: 0 for rank in range(plan.receiver.world_size)}
    for message in messages:
        sent[message.sender] += message.size
        taken[message.receiver] += message.size
    found = traffic_of(plan)
    assert found.moves == sum(len(part.round) for part in moves)
    assert found.size == sum(found.sizes.values()) == sum(sent.values())
    assert (found.sender_most, found.receiver_most) == (max(sent.values()), max(taken.values()))
    assert found.edges == Counter(edge.op.value for edge in plan.edges)


def test_edges_divided_reordered_and_renamed_are_no_change(plan: TransferPlan) -> None:
    data = members(plan)
    names = {"layer": "block", "expert": "number"}
    for part in ("edges", "fills", "derived"):
        divided = [half for one in data[part] for half in split_indices(one)]
        data[part] = [renamed(one, names) for one in divided]
    data["edges"].reverse()
    other = as_plan(data)
    assert other
    assert len(other.edges) > len(plan.edges)
    assert diff_plans(plan, other) == ()
    assert diff_plans(other, plan) == ()


def leaves(data: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(data, dict):
        for key, value in cast("dict[str, Json]", data).items():
            yield from leaves(value, (*path, key))
    elif isinstance(data, list):
        for number, value in enumerate(cast("list[Json]", data)):
            yield from leaves(value, (*path, number))
    else:
        yield path


def with_other_leaf(data: Json, path: tuple[str | int, ...]) -> Json:
    copy = json.loads(json.dumps(data))
    node = copy
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = other_value(node[path[-1]])
    return copy


def other_value(value: bool | int | str) -> bool | int | str:
    if isinstance(value, str):
        return other_text(value)
    return not value if isinstance(value, bool) else value + 1


def other_text(text: str) -> str:
    swaps = {
        "divide": "rescale",
        "bf16": "f16",
        "f32": "bf16",
        "sender": "receiver",
        "f8e4m3fn": "f8e5m2",
    }
    if text.startswith("sha256:"):
        return f"sha256:{'0' * 64}"
    if text in swaps:
        return swaps[text]
    if "0..3" in text:
        return text.replace("0..3", "0..2")
    return f"{text} + 1"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_other_number_or_word_is_a_change(plan: TransferPlan, data: st.DataObject) -> None:
    document = members(plan)
    document["format"] = "tranship.plan/1"
    path = data.draw(st.sampled_from([path for path in leaves(document) if path != ("format",)]))
    other = as_plan(with_other_leaf(document, path))
    if other is not None:
        assert diff_plans(plan, other), path
        assert diff_plans(other, plan), path
