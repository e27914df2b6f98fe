"""The edges of two plans: which tensors move otherwise, and when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.edge_cells import Cell, cells, pairs
from tranship.compiler.diffs.edges import LOSSY, Ends, Rounds, edge_findings, rounds_of
from tranship.compiler.diffs.listing import index_names, members_text
from tranship.compiler.diffs.rows import World, worlds
from tranship.schema import indexset
from tranship.schema.expression import ExpressionError, IntArray
from tranship.schema.mesh import table_arrays
from tranship.schema.plan import Edge, Op, TransferPlan

MOST_ROUND_LINES = 12
"""More ways in which tensors change rounds than this are one line."""


def edge_changes(old: TransferPlan, new: TransferPlan) -> Iterator[Change]:
    """Compare the edges of two plans that `check_plan` finds nothing wrong with."""
    before, after = _ends(old, new)
    same_tables = (
        old.schedule == new.schedule
        and old.sender.tables == new.sender.tables
        and old.receiver.tables == new.receiver.tables
    )
    moved = _Moved()
    for cell in cells(old.edges, new.edges):
        found = list(pairs(cell, old.edges, new.edges))
        for first, second in found:
            if first is None or second is None:
                yield _alone(cell, first, second, old, new)
                continue
            findings = edge_findings(
                before[first], after[second], cell.numbers, same_tables=same_tables
            )
            for finding, weight in findings:
                yield Change(
                    f"edge.{finding.kind}",
                    weight,
                    new.edges[second].tensor,
                    finding.old,
                    finding.new,
                    len(cell.numbers),
                    members_text(new.edges[second].tensor, cell.numbers),
                    f"/edges/{second}",
                    finding.detail,
                )
        if cell.old and cell.new:
            moved.add(cell, before, after, new)
    yield from moved.changes()


def _ends(old: TransferPlan, new: TransferPlan) -> tuple[list[Ends], list[Ends]]:
    def ranks(count: int) -> IntArray:
        return np.arange(count, dtype=np.int64)

    sender = worlds(old.sender, new.sender, ranks(new.sender.world_size))
    receiver = worlds(old.receiver, new.receiver, ranks(new.receiver.world_size))
    return _of(old, sender[0], receiver[0]), _of(new, sender[1], receiver[1])


def _of(plan: TransferPlan, sender: World, receiver: World) -> list[Ends]:
    schedule = table_arrays(plan.schedule)
    return [Ends(edge, sender, receiver, schedule) for edge in plan.edges]


def _alone(
    cell: Cell, first: int | None, second: int | None, old: TransferPlan, new: TransferPlan
) -> Change:
    number = first if second is None else second
    assert number is not None, "a pair has an edge"
    edge = old.edges[number] if second is None else new.edges[number]
    text = edge_text(edge)
    whole = not cell.old or not cell.new
    lossy = second is not None and edge.op in LOSSY
    return Change(
        "tensor" if whole else "edge",
        Weight.GRANT if lossy else Weight.CHANGE,
        edge.tensor,
        None if first is None else text,
        None if second is None else text,
        len(cell.numbers),
        members_text(edge.tensor, cell.numbers),
        f"/edges/{number}",
        "blocks are cut" if edge.op is Op.AMAX else "",
    )


def edge_text(edge: Edge) -> str:
    """Say in a few words what an edge does: `quantize bf16 to f8e4m3fn at the sender`."""
    where = "" if edge.op in (Op.COPY, Op.AMAX) else f" at the {edge.place}"
    return f"{edge.op} {edge.sender.dtype} to {edge.receiver.dtype}{where}"


@dataclass
class _Moved:
    """Tensors that are in other rounds, gathered by what their first index is and where they go."""

    found: dict[tuple[str, str], dict[str, list[IntArray]]] = field(
        default_factory=dict[tuple[str, str], dict[str, list[IntArray]]]
    )
    pointer: str = ""

    def add(self, cell: Cell, old: Sequence[Ends], new: Sequence[Ends], plan: TransferPlan) -> None:
        """Compare the rounds of one cell's tensors."""
        tensor = plan.edges[cell.new[0]].tensor
        try:
            before = rounds_of([old[number] for number in cell.old], cell.numbers)
        except ExpressionError:
            return
        after = rounds_of([new[number] for number in cell.new], cell.numbers)
        differ = (before.first != after.first) | (before.last != after.last)
        for row in np.flatnonzero(differ & (before.last >= 0) & (after.last >= 0)).tolist():
            key = _round_text(before, row), _round_text(after, row)
            part = self.found.setdefault(key, {}).setdefault(tensor, [])
            part.append(cell.numbers[row])
            self.pointer = self.pointer or f"/edges/{cell.new[0]}/round"

    def changes(self) -> Iterator[Change]:
        """Say who moves from which round to which."""
        if len(self.found) > MOST_ROUND_LINES:
            count = sum(len(part) for parts in self.found.values() for part in parts.values())
            yield Change(
                "round",
                Weight.CHANGE,
                "the order of transfer",
                "",
                "",
                count,
                pointer=self.pointer,
            )
            return
        for (old, new), parts in self.found.items():
            count = sum(len(part) for part in parts.values())
            yield Change("round", Weight.CHANGE, _who(parts), old, new, count, pointer=self.pointer)


def _round_text(rounds: Rounds, row: int) -> str:
    first, last = int(rounds.first[row]), int(rounds.last[row])
    return f"{first}" if first == last else f"{first}..{last}"


def _who(parts: dict[str, list[IntArray]]) -> str:
    """Name the tensors: by the layer that they are of, or by name if there is only one family."""
    if len(parts) == 1:
        tensor, numbers = next(iter(parts.items()))
        members = members_text(tensor, np.array(numbers, dtype=np.int64).reshape(len(numbers), -1))
        return f"{tensor} {members}".strip()
    by_index: dict[str, set[int]] = {}
    plain: list[str] = []
    for tensor, numbers in parts.items():
        names = index_names(tensor, len(numbers[0]))
        if names and names[0]:
            by_index.setdefault(names[0], set()).update(int(number[0]) for number in numbers)
        else:
            plain.append(tensor)
    return ", ".join(
        [*(f"{name} {indexset.to_text(values)}" for name, values in by_index.items()), *plain]
    )
