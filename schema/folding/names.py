"""The numbers in names: which digits of a buffer's or tensor's name may be an index."""

import keyword
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from tranship.schema.expression import Constant, Expression
from tranship.schema.template import Template, template_text

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_HOLE = re.compile(rf"(?<![^.]){_NUMBER}(?![^.])|(?<=[^.0-9]){_NUMBER}$")
_PLURAL = re.compile(r"(?:^|\.)([a-z][a-z0-9_]{1,31}[a-rt-z0-9_])s\.$")


@dataclass(frozen=True, slots=True)
class SplitName:
    """A name taken apart: `texts[0] numbers[0] texts[1] ... texts[-1]`."""

    texts: tuple[str, ...]
    numbers: tuple[int, ...]


@lru_cache(maxsize=1 << 18)
def split_name(name: str) -> SplitName:
    """Take out the numbers that may be indices.

    They are the components (between dots) that are all digits, and the digits that end the last
    component: `layers.3.experts.weight12` has 3 and 12, `layers.3.w13_weight` has 3. A number
    with a leading zero or more than nine digits stays text.
    """
    found = list(_HOLE.finditer(name))
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(name)]
    texts = tuple(name[end:start] for end, start in zip(ends, starts, strict=True))
    return SplitName(texts, tuple(int(match.group()) for match in found))


def index_names(texts: tuple[str, ...], taken: Collection[str]) -> tuple[str, ...]:
    """Name the index of each number after the plural before it: `layers.` gives `layer`.

    Without a plural the name is `index`. A name that is in `taken`, or used before, gets the
    smallest free number from 2 on.
    """
    names: list[str] = []
    for text in texts[:-1]:
        plural = _PLURAL.search(text)
        names.append(free_name(plural[1] if plural else "index", {*taken, *names}))
    return tuple(names)


def free_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, or `name2`, `name3`, ...: the first that is free and may be a variable."""
    candidate, number = name, 1
    while candidate in taken or not is_variable(candidate):
        number += 1
        candidate = f"{name}{number}"
    return candidate


def is_variable(name: str) -> bool:
    """Whether an expression can refer to `name`."""
    return not keyword.iskeyword(name) and name not in ("min", "max")


def join_name(texts: tuple[str, ...], numbers: Iterable[Expression]) -> str:
    """Write the template of `texts` around `numbers`; constants become text again."""
    merged, holes = [texts[0]], list[Expression]()
    for number, text in zip(numbers, texts[1:], strict=True):
        if isinstance(number, Constant):
            merged[-1] += f"{number.value}{text}"
        else:
            holes.append(number)
            merged.append(text)
    return template_text(Template(tuple(merged), tuple(holes)))
