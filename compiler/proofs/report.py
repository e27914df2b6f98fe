"""How the proofs write down what they find."""

from collections.abc import Iterable, Sequence

from tranship.schema.diagnostics import Diagnostic, Location

PLAN = "plan"
"""The file name of locations in the plan; callers know the real one."""


def at_edge(number: int, field: str = "") -> Location:
    """The place of edge `number`, or of one of its fields."""
    return Location(PLAN, f"/edges/{number}{field}")


def at(pointer: str) -> Location:
    """A place in the plan."""
    return Location(PLAN, pointer)


def and_more(count: int, noun: str) -> str:
    """The end of a message about the first of `count` finds, one of each kind (`units.py`)."""
    if count < 2:
        return ""
    return f" (and {count - 1} other kind{'' if count == 2 else 's'} of {noun})"


def box_text(start: Sequence[int], extent: Sequence[int], step: Sequence[int] | None = None) -> str:
    """A box as `[0..511, 3, 0..4094:2]`, last included."""
    steps = step or [1] * len(start)
    return f"[{', '.join(_dim(*dim) for dim in zip(start, extent, steps, strict=True))}]"


def _dim(start: int, extent: int, step: int) -> str:
    if extent < 1:
        return "none"
    last = start + (extent - 1) * step
    if last == start:
        return str(start)
    return f"{start}..{last}" if step == 1 else f"{start}..{last}:{step}"


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few of several names, quoted."""
    listed = list(names)
    text = ", ".join(f"'{name}'" for name in listed[:limit])
    return text if len(listed) <= limit else f"{text} and {len(listed) - limit} more"


def refuse(
    code: str,
    message: str,
    place: Location,
    expected: object = None,
    found: object = None,
    help_text: str | None = None,
) -> Diagnostic:
    """An error at a place of the plan."""
    return Diagnostic(
        code,
        message,
        place,
        expected=None if expected is None else str(expected),
        found=None if found is None else str(found),
        help=help_text,
    )
