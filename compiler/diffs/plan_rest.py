"""What a plan has besides edges: inputs, staging, rounds, fills, recipes, and what is unused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.extras import as_text, extras
from tranship.compiler.diffs.fields import names_differ
from tranship.compiler.diffs.listing import (
    Listed,
    distinct,
    listed,
    members_text,
    nothing_like,
    shared,
)
from tranship.compiler.diffs.rows import World, row_codes, worlds
from tranship.compiler.diffs.wording import entries_text
from tranship.schema.members import Rows
from tranship.schema.plan import DerivedStep, FillEdge, Round, TransferPlan
from tranship.schema.template import parse_template

M = TypeVar("M", bound=BaseModel)


def input_changes(old: TransferPlan, new: TransferPlan) -> Iterator[Change]:
    """Say which of the inputs have other contents now."""
    digests = {
        "the sender's manifest": (old.sender.manifest, new.sender.manifest, "/sender/manifest"),
        "the receiver's manifest": (
            old.receiver.manifest,
            new.receiver.manifest,
            "/receiver/manifest",
        ),
        "the policy": (old.policy, new.policy, "/policy"),
        "the placement": (old.placement, new.placement, "/placement"),
        "the options": (old.options, new.options, "/options"),
    }
    for subject, (before, after, pointer) in digests.items():
        if before != after:
            yield Change(
                "input", Weight.NOTE, subject, _digits(before), _digits(after), pointer=pointer
            )


def _digits(digest: str | None) -> str | None:
    return digest and digest.removeprefix("sha256:")[:12]


def staging_changes(old: TransferPlan, new: TransferPlan) -> Iterator[Change]:
    """Compare staging memory and the rounds."""
    if old.staging.budget != new.staging.budget:
        budgets = f"{old.staging.budget:,}", f"{new.staging.budget:,}"
        pointer = "/staging/budget"
        yield Change("staging.budget", Weight.CHANGE, "bytes per rank", *budgets, pointer=pointer)
    if old.staging.slots != new.staging.slots:
        sizes = _sizes(old), _sizes(new)
        yield Change(
            "staging.slots", Weight.CHANGE, "bytes per rank", *sizes, pointer="/staging/slots"
        )
    if len(old.rounds) != len(new.rounds):
        counts = f"{len(old.rounds):,}", f"{len(new.rounds):,}"
        yield Change("rounds", Weight.CHANGE, "the transfer", *counts, pointer="/rounds")
    elif old.rounds != new.rounds:
        first = next(n for n in range(len(new.rounds)) if old.rounds[n] != new.rounds[n])
        texts = _round_text(old.rounds[first]), _round_text(new.rounds[first])
        yield Change(
            "rounds.order", Weight.CHANGE, f"round {first}", *texts, pointer=f"/rounds/{first}"
        )
    if old.seats != new.seats:
        seats = _seats(old), _seats(new)
        yield Change("seats", Weight.CHANGE, "nearest holders", *seats, pointer="/seats")


def _round_text(one: Round) -> str:
    return f"slot {one.slot} after {list(one.after)}"


def _seats(plan: TransferPlan) -> str | None:
    return plan.seats and as_text(plan.seats.model_dump(mode="json"))


def _sizes(plan: TransferPlan) -> str:
    texts = (f"{slot.sender.size:,} and {slot.receiver.size:,}" for slot in plan.staging.slots)
    return ", ".join(texts) or "none"


def unused_changes(old: TransferPlan, new: TransferPlan) -> Iterator[Change]:
    """Say which of the sender's tensors are now left out, and which no longer."""
    before = {parse_template(one.tensor).texts: one for one in old.unused}
    after = {parse_template(one.tensor).texts: one for one in new.unused}
    for number, other in enumerate(new.unused):
        one = before.get(parse_template(other.tensor).texts)
        pointer = f"/unused/{number}"
        if one is None:
            yield Change("unused", Weight.GRANT, other.tensor, None, other.reason, pointer=pointer)
        elif one.reason != other.reason:
            yield Change(
                "unused.reason", Weight.NOTE, other.tensor, one.reason, other.reason,
                pointer=pointer,
            )  # fmt: skip
    for number, one in enumerate(old.unused):
        if parse_template(one.tensor).texts not in after:
            pointer = f"/unused/{number}"
            yield Change("unused", Weight.CHANGE, one.tensor, one.reason, None, pointer=pointer)


def receiver_changes(old: TransferPlan, new: TransferPlan) -> Iterator[Change]:
    """Compare what the receiver does without a sender: fills and recipes."""
    ranks = np.arange(new.receiver.world_size, dtype=np.int64)
    ends = worlds(old.receiver, new.receiver, ranks)
    same_tables = old.receiver.tables == new.receiver.tables
    yield from _fill_changes(old.fills, new.fills, ends, same_tables=same_tables)
    yield from _derived_changes(old.derived, new.derived, ends, same_tables=same_tables)


Numbered = list[tuple[int, M]]


def _apart(
    old: Sequence[M], new: Sequence[M], *, same_tables: bool
) -> tuple[Numbered[M], Numbered[M]]:
    """Leave out what both plans have, word for word."""
    texts = [[one.model_dump_json() for one in many] for many in (old, new)]
    both = Counter(texts[0]) & Counter(texts[1]) if same_tables else Counter[str]()
    return _without(old, texts[0], both), _without(new, texts[1], both)


def _without(many: Sequence[M], texts: Sequence[str], both: Counter[str]) -> Numbered[M]:
    left = Counter(both)
    found: Numbered[M] = []
    for number, (one, text) in enumerate(zip(many, texts, strict=True)):
        if left[text]:
            left[text] -= 1
        else:
            found.append((number, one))
    return found


_FILL = frozenset({"op", "buffer", "dtype", "indices", "at", "offset", "sizes", "strides", "value"})


def _fill_changes(
    old: Sequence[FillEdge],
    new: Sequence[FillEdge],
    ends: tuple[World, World],
    *,
    same_tables: bool,
) -> Iterator[Change]:
    first, second = _apart(old, new, same_tables=same_tables)
    before = [_fill_key(fill, ends[0]) for _, fill in first]
    after = [_fill_key(fill, ends[1]) for _, fill in second]
    gone = _unmatched(before, after)
    for place in _unmatched(after, before):
        number, fill = second[place]
        text = _fill_text(fill)
        yield Change("fill", Weight.CHANGE, fill.buffer, None, text, pointer=f"/fills/{number}")
    for place in gone:
        number, fill = first[place]
        text = _fill_text(fill)
        yield Change("fill", Weight.CHANGE, fill.buffer, text, None, pointer=f"/fills/{number}")


def _fill_key(fill: FillEdge, world: World) -> bytes:
    """Describe all instances of a fill, whatever its indices are called."""
    _, rows = world.all_rows().join(fill.indices, fill.at)
    rows = rows.take(np.flatnonzero((rows.array(fill.sizes) > 0).all(axis=1)))
    listing = listed([fill.buffer], [rows])
    own = rows.array([fill.offset, *fill.sizes, *fill.strides])
    parts = [repr((fill.dtype, fill.value, extras(fill, _FILL), len(fill.sizes))).encode()]
    for texts, found in sorted(listing.items()):
        matrix = np.concatenate([found.numbers, found.rank[:, np.newaxis], own[found.row]], axis=1)
        order = np.lexsort(matrix.T[::-1])
        parts += [repr(texts).encode(), matrix[order].tobytes()]
    return b"\n".join(parts)


def _unmatched(own: Sequence[bytes], other: Sequence[bytes]) -> list[int]:
    left = Counter(other)
    found: list[int] = []
    for place, key in enumerate(own):
        if left[key]:
            left[key] -= 1
        else:
            found.append(place)
    return found


def _fill_text(fill: FillEdge) -> str:
    return f"{entries_text(fill.sizes, {})} at {fill.offset} with {fill.value}"


def _derived_changes(
    old: Sequence[DerivedStep],
    new: Sequence[DerivedStep],
    ends: tuple[World, World],
    *,
    same_tables: bool,
) -> Iterator[Change]:
    first, second = _apart(old, new, same_tables=same_tables)
    rows = [
        [world.all_rows().join(step.indices, step.at)[1] for _, step in steps]
        for steps, world in zip((first, second), ends, strict=True)
    ]
    before, after = (
        listed([step.buffer for _, step in steps], own)
        for steps, own in zip((first, second), rows, strict=True)
    )
    for texts in [*after, *(texts for texts in before if texts not in after)]:
        one = before.get(texts) or nothing_like(after[texts])
        other = after.get(texts) or nothing_like(one)
        both = shared(one, other)
        yield from _step_pairs(
            (first, rows[0], one.take(both.old)), (second, rows[1], other.take(both.new))
        )
        yield from _steps_alone(second, other.take(both.new_only), is_new=True)
        yield from _steps_alone(first, one.take(both.old_only), is_new=False)
    orders = [[(step.recipe, parse_template(step.buffer).texts) for step in s] for s in (old, new)]
    if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
        names = _buffers(old), _buffers(new)
        yield Change("derived.order", Weight.CHANGE, "recipes", *names, pointer="/derived")


def _buffers(steps: Sequence[DerivedStep]) -> str:
    return ", ".join(step.buffer for step in steps)


_Steps = tuple[Numbered[DerivedStep], list[Rows], Listed]
_STEP = frozenset({"recipe", "buffer", "indices", "at", "inputs", "after"})


def _step_pairs(old: _Steps, new: _Steps) -> Iterator[Change]:
    codes = row_codes(np.stack([old[2].family, new[2].family], axis=1))
    for code in np.unique(codes):
        chosen = np.flatnonzero(codes == code)
        ends = old[2].take(chosen), new[2].take(chosen)
        _, one = old[0][int(ends[0].family[0])]
        number, other = new[0][int(ends[1].family[0])]
        own = [
            side[1][int(end.family[0])].take(end.row)
            for side, end in zip((old, new), ends, strict=True)
        ]
        texts = _step_text(one), _step_text(other)
        if (one.recipe, one.inputs) == (other.recipe, other.inputs):
            texts = f"after round {one.after}", f"after round {other.after}"
        pairs = zip(one.inputs, other.inputs, strict=False)
        differ = len(one.inputs) != len(other.inputs) or any(
            names_differ((a, own[0]), (b, own[1])).any() for a, b in pairs
        )
        plain = [(s.recipe, s.after, extras(s, _STEP)) for s in (one, other)]
        if differ or plain[0] != plain[1]:
            numbers = distinct(ends[1].numbers)
            yield Change(
                "derived",
                Weight.CHANGE,
                other.buffer,
                *texts,
                len(numbers),
                members_text(other.buffer, numbers),
                f"/derived/{number}",
            )


def _step_text(step: DerivedStep) -> str:
    return f"by {step.recipe} from {', '.join(step.inputs)} after round {step.after}"


def _steps_alone(steps: Numbered[DerivedStep], own: Listed, *, is_new: bool) -> Iterator[Change]:
    for family in np.unique(own.family):
        number, step = steps[int(family)]
        numbers = distinct(own.numbers[own.family == family])
        text = _step_text(step)
        yield Change(
            "derived",
            Weight.CHANGE,
            step.buffer,
            None if is_new else text,
            text if is_new else None,
            len(numbers),
            members_text(step.buffer, numbers),
            f"/derived/{number}",
        )
