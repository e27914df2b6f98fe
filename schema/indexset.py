"""Index sets: sorted sets of non-negative integers, written as ranges with steps and lists."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

PATTERN = (
    r"^[0-9]{1,9}(\.\.[0-9]{1,9}(:[0-9]{1,9})?)?(,[0-9]{1,9}(\.\.[0-9]{1,9}(:[0-9]{1,9})?)?)*$"
)
"""Regular expression of the text form, for the published schemas."""

MAX_MEMBERS = 1_000_000
"""Most members that one index set may have."""

_ITEM = re.compile(r"([0-9]+)(?:\.\.([0-9]+)(?::([0-9]+))?)?")


class IndexSetError(ValueError):
    """A text that is not an index set in canonical order."""


@lru_cache(maxsize=4096)
def parse(text: str) -> tuple[int, ...]:
    """Read `0..3`, `0..92:2` (last included) or `0,3,7..9` into its sorted members.

    Raises:
        IndexSetError: not the grammar, members not strictly ascending, or too many.
    """
    members: list[int] = []
    for item in text.split(","):
        members.extend(_item(item, MAX_MEMBERS - len(members)))
    if any(b <= a for a, b in pairwise(members)):
        raise IndexSetError("members must be strictly ascending")
    return tuple(members)


def _item(item: str, room: int) -> range:
    found = _ITEM.fullmatch(item)
    if not found:
        raise IndexSetError(f"{item!r} is neither a number, a..b nor a..b:step")
    first = int(found[1])
    last = int(found[2]) if found[2] else first
    step = int(found[3]) if found[3] else 1
    if step < 1 or last < first or (last - first) % step:
        raise IndexSetError(f"{item!r} does not run from its first to its last member")
    members = range(first, last + 1, step)
    if len(members) > room:
        raise IndexSetError(f"more than {MAX_MEMBERS} members")
    return members


def to_text(members: Iterable[int]) -> str:
    """Write the canonical text: from the smallest member on, the longest run of constant step.

    Two members make a run only when they are neighbours; three or more always do.
    """
    rest = sorted(set(members))
    return ",".join(_runs(rest))


def _runs(members: list[int]) -> Iterator[str]:
    position = 0
    while position < len(members):
        first = members[position]
        length = _run_length(members, position)
        step = members[position + 1] - first if length > 1 else 1
        if length == 1 or (length == 2 and step != 1):
            yield str(first)
            position += 1
            continue
        last = members[position + length - 1]
        yield f"{first}..{last}" if step == 1 else f"{first}..{last}:{step}"
        position += length


def _run_length(members: list[int], position: int) -> int:
    if position + 1 >= len(members):
        return 1
    step = members[position + 1] - members[position]
    length = 2
    while position + length < len(members) and (
        members[position + length] - members[position + length - 1] == step
    ):
        length += 1
    return length
