"""Nearest names: what a reader may have meant by a name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 512
"""Names of more characters are not compared: the time grows with the product of both lengths."""


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Return at most `limit` of the candidates that resemble `name`, the nearest first.

    Case and the difference between `-` and `_` do not count. The result does not depend on the
    order of the candidates.

    >>> nearest("shpae", ["dtype", "shape", "strides"])
    ('shape',)
    """
    if len(name) > LONGEST:
        return ()
    spellings: dict[str, str] = {}
    for candidate in sorted(candidates):
        if len(candidate) <= LONGEST:
            spellings.setdefault(_plain(candidate), candidate)
    close = get_close_matches(_plain(name), spellings, n=limit)
    return tuple(spellings[spelling] for spelling in close)


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
