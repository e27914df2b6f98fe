"""Traffic that is added up without listing moves is that of all moves, listed one by one."""

from collections import Counter

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.compiler.large_pairs import large_pairs
from tests.compiler.verdicts import Transfer
from tests.mutants.cases import CASES
from tests.mutants.editing import with_edge
from tranship.compiler.pipeline import compile_transfer
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.flows import lanes, received, sent, stream, traffic
from tranship.schema.manifest import IntExpression
from tranship.schema.moves import Moves, edge_moves
from tranship.schema.placement import Placement, Seat
from tranship.schema.plan import Edge, Half, Round, Seats, TransferPlan, Window
from tranship.schema.testing import Limits, transfers
from tranship.schema.testing.transfers import RandomTransfer
from tranship.schema.wire import pack_messages, payload

ROUNDS = 40
"""Rounds of every plan: more than any expression that is drawn may give."""

modest = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
pairs = large_pairs() | transfers(Limits(ranks=12, layers=5))


def _plan(drawn: Transfer | RandomTransfer) -> TransferPlan:
    """The plan of a transfer, with rounds to spare."""
    try:
        plan = compile_transfer(
            drawn.sender, drawn.receiver, drawn.policy, drawn.placement, drawn.options
        )
    except DiagnosticError:
        plan = None
    assume(plan is not None and plan.edges)
    assert plan is not None
    return plan.model_copy(update={"rounds": (*plan.rounds, *[Round(slot=0)] * ROUNDS)})


def _expression(plan: TransferPlan, edge: Edge, data: DataObject) -> IntExpression:
    """An expression from 0 to 30 over the edge's indices, the receiver's own, axes and `rank`."""
    own = [*edge.indices, *edge.receiver.indices]
    names = st.sampled_from([*own, *own, *(axis.name for axis in plan.receiver.axes), "rank"])
    terms = [
        f"({data.draw(names)} + {data.draw(st.integers(0, 3))}) % {data.draw(st.integers(1, 6))}"
        f" * {data.draw(st.integers(1, 2))}"
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    return " + ".join(terms) or data.draw(st.integers(0, 5))


def _rerouted(plan: TransferPlan, data: DataObject) -> TransferPlan:
    """The plan with other turns, rounds, windows and seats."""
    for number, edge in enumerate(plan.edges):
        change: dict[str, object] = {}
        if data.draw(st.booleans()):
            change["round"] = _expression(plan, edge, data)
        if data.draw(st.booleans()):
            change["turn"] = _expression(plan, edge, data)
        change["nearest"] = data.draw(st.booleans())
        if edge.shape and edge.shape[0] > 1 and edge.window is None and data.draw(st.booleans()):
            change |= _windowed(edge, data)
        plan = with_edge(plan, number, **change)
    return plan.model_copy(update={"seats": _seats(data)})


def _windowed(edge: Edge, data: DataObject) -> dict[str, object]:
    """Windows of rows, over an index of their own or over one that the edge has."""
    index = data.draw(st.sampled_from(["window", *edge.indices]))
    rows = data.draw(st.integers(1, edge.shape[0]))
    window = Window(
        start=(f"{index} % 3 * {rows}", *edge.shape[1:]), extent=(rows, *edge.shape[1:])
    )
    window = window.model_copy(update={"start": (window.start[0], *(0 for _ in edge.shape[1:]))})
    return {"window": window, "indices": {**edge.indices, "window": "0..2"}}


def _seats(data: DataObject) -> Seats | None:
    """Hosts of some ranks each, and as many devices or fewer."""
    if data.draw(st.booleans()):
        return None
    seats = [
        Seat(
            host=f"rank // {data.draw(st.integers(1, 5))}",
            device=f"rank % {data.draw(st.integers(1, 3))}",
        )
        for _ in range(2)
    ]
    placement = Placement(format="tranship.placement/1", sender=seats[0], receiver=seats[1])
    return Seats(sender=placement.sender, receiver=placement.receiver)


def _assert_equal_to_moves(plan: TransferPlan) -> None:
    moves = [edge_moves(plan, number) for number in range(len(plan.edges))]
    found = traffic(plan, plan.edges)
    assert found.moves == sum(len(part.round) for part in moves)
    _, messages = pack_messages(plan.edges, moves)
    by_sender, by_receiver = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for message in messages:
        by_sender[message.round, message.sender] += message.size
        by_receiver[message.round, message.receiver] += message.size
    for table, expected in ((found.sender, by_sender), (found.receiver, by_receiver)):
        shares = {
            (row, rank): int(table[row, rank])
            for row in range(table.shape[0])
            for rank in range(table.shape[1])
            if table[row, rank]
        }
        assert shares == {key: size for key, size in expected.items() if size}
    for edge, part in zip(plan.edges, moves, strict=True):
        _assert_stream(plan, edge, part)


def _assert_stream(plan: TransferPlan, edge: Edge, moves: Moves) -> None:
    """Streams, shares and lanes of one edge, with all of its indices told apart."""
    names = list(edge.indices)
    part = stream(plan, edge, names)
    assert part.moves == len(moves.round)
    sizes = payload(edge, moves).padded.tolist()
    columns = [moves.receiver.environment[name].tolist() for name in names]
    points = list(zip(*columns, strict=True)) if names else [()] * len(sizes)
    ends = zip(moves.sender.rank.tolist(), moves.receiver.rank.tolist(), points, sizes, strict=True)
    senders, receivers, both = Counter[object](), Counter[object](), Counter[object]()
    for source, target, point, size in ends:
        senders[source, point] += size
        receivers[target, point] += size
        both[source, target, point] += size
    labels = [part.environment[name] for name in names]
    for share, expected in (
        (sent(plan, edge, part, labels), senders),
        (received(part, labels), receivers),
    ):
        keys = list(zip(*(label.tolist() for label in share.labels), strict=True))
        found = Counter[object]()
        for rank, key, size in zip(
            share.rank.tolist(), keys or [()] * len(share.rank), share.size.tolist(), strict=True
        ):
            found[rank, key] += size
        assert +found == +expected
    found = Counter[object]()
    every = lanes(plan, edge, part)
    told = [label[every.place].tolist() for label in labels]
    where = list(zip(*told, strict=True)) if told else [()] * len(every.size)
    for source, target, point, size in zip(
        every.sender.tolist(), every.receiver.tolist(), where, every.size.tolist(), strict=True
    ):
        found[source, target, point] += size
    assert +found == +both


@settings(modest, max_examples=40)
@given(drawn=pairs)
def test_plans_as_compiled(drawn: Transfer | RandomTransfer) -> None:
    _assert_equal_to_moves(_plan(drawn))


@settings(modest, max_examples=80)
@given(drawn=pairs, data=st.data())
def test_turns_rounds_and_windows_of_any_kind(
    drawn: Transfer | RandomTransfer, data: DataObject
) -> None:
    _assert_equal_to_moves(_rerouted(_plan(drawn), data))


@settings(modest, max_examples=40)
@given(number=st.integers(0, len(CASES) - 1), data=st.data())
def test_indices_of_one_end(number: int, data: DataObject) -> None:
    """A half's own indices count as moves of their own, wherever turns and rounds read them."""
    case = CASES[number]()
    plan = compile_transfer(case.sender, case.receiver, case.policy, case.placement, case.options)
    plan = plan.model_copy(update={"rounds": (*plan.rounds, *[Round(slot=0)] * ROUNDS)})
    for place, edge in enumerate(plan.edges):
        for side in ("sender", "receiver"):
            half: Half = getattr(edge, side)
            own = {f"own_{side}": data.draw(st.sampled_from(["0", "0..2", "1,4"]))}
            plan = with_edge(plan, place, **{side: half.model_copy(update={"indices": own})})
    _assert_equal_to_moves(_rerouted(plan, data))
