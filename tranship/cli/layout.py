"""Lines for people: parts that flow within a width, and numbers that read well."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.text import Text

from tranship.schema import indexset

HEAD = "bold"
NAME = "cyan"
PLACE = "green"
QUIET = "dim"
GOOD = "bold green"
BAD = "bold red"

Words = str | tuple[str, str]
"""Text, or text and its style."""


def flow(label: Words, parts: Iterable[Words], width: int, indent: int = 0) -> Iterator[Text]:
    """Write parts behind a label, two spaces apart; one that does not fit opens a new line.

    New lines begin below the first part. A part is never broken.
    """
    line = Text(" " * indent).append_text(_text(label))
    margin = len(line)
    for part in parts:
        text = _text(part)
        if not text.plain:
            continue
        if len(line) > margin and len(line) + 2 + len(text) > width:
            yield line
            line = Text(" " * margin)
        line.append("" if len(line) == margin else "  ").append_text(text)
    yield line


def _text(part: Words) -> Text:
    text, style = (part, "") if isinstance(part, str) else part
    return Text(printable(text), style, end="")


def printable(text: str) -> str:
    """Replace the characters that would move the cursor or not show, one by one."""
    return "".join(c if c.isprintable() else "?" for c in text)


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number of things: `1 edge`, `23,040 edges`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size_text(size: float) -> str:
    """Write a number of bytes in the decimal unit that suits it: `965.1 MB`."""
    unit = 0
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:,.1f} {_UNITS[unit]}" if unit else f"{size:,.0f} bytes"


def time_text(seconds: float) -> str:
    """Write a time in the unit that suits it: `2.3 us`, `41.0 ms`, `1.5 s`."""
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds / 1e-6:,.1f} us"


def index_parts(indices: Mapping[str, str]) -> list[Words]:
    """Write what indices run over: `layer 0..35`."""
    return [f"{name} {members}" for name, members in indices.items()]


_MOST_VALUES = 24


def table_text(values: Sequence[int]) -> list[str]:
    """Write a table by its values: `0 at 0..4`, `1 at 5..9`; one of many values by its bounds."""
    distinct = sorted(set(values))
    if len(distinct) > _MOST_VALUES:
        return [f"{count(len(values), 'entry', 'entries')} from {distinct[0]} to {distinct[-1]}"]
    places = {v: [n for n, entry in enumerate(values) if entry == v] for v in distinct}
    return [f"{value} at {indexset.to_text(at)}" for value, at in places.items()]


def short_name(name: str, beside: str) -> str:
    """Leave out of `name` the module that it has in common with the name beside it."""
    module, dot, last = name.rpartition(".")
    return last if dot and beside.startswith(f"{module}.") else name
