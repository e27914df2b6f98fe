"""The data files that come with tranship, and those that users name by path."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from tranship.models.declared import Architecture, Layout
from tranship.schema.codec import Source, parse_toml, read_text, validate
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.nearest import nearest

M = TypeVar("M", bound=BaseModel)

SUFFIX = ".toml"


@cache
def architectures() -> tuple[str, ...]:
    """Return the names of the architectures that come with tranship, sorted."""
    return _names("architectures")


@cache
def layouts() -> tuple[str, ...]:
    """Return the names of the layouts that come with tranship, sorted."""
    return _names("layouts")


def _names(folder: str) -> tuple[str, ...]:
    entries = (files("tranship.models") / folder).iterdir()
    return tuple(sorted(e.name.removesuffix(SUFFIX) for e in entries if e.name.endswith(SUFFIX)))


def load_architecture(name: str) -> tuple[Architecture, str]:
    """Read an architecture by name or by path, and return it with its file's name.

    Raises:
        DiagnosticError: TS750 there is none of that name; TS100 to TS118 the file is not one.
    """
    return _load(name, "architectures", architectures(), Architecture)


def load_layout(name: str) -> tuple[Layout, str]:
    """Read a layout by name or by path, and return it with its file's name.

    Raises:
        DiagnosticError: TS750 there is none of that name; TS100 to TS118 the file is not one.
    """
    return _load(name, "layouts", layouts(), Layout)


def _load(name: str, folder: str, known: tuple[str, ...], model: type[M]) -> tuple[M, str]:
    if name in known:
        text = (files("tranship.models") / folder / f"{name}{SUFFIX}").read_text(encoding="utf-8")
        file = f"{name}{SUFFIX}"
    elif name.endswith(SUFFIX):
        text, file = read_text(Path(name)), name
    else:
        raise DiagnosticError([_unknown(name, folder, known)])
    return validate(model, parse_toml(text, file), Source(file, text)), file


def _unknown(name: str, folder: str, known: tuple[str, ...]) -> Diagnostic:
    close = nearest(name, known, limit=1)
    kind = folder.removesuffix("s")
    return Diagnostic(
        "TS750",
        f"there is no {kind} {name!r}",
        expected=f"one of {', '.join(known)}, or the path of a {SUFFIX} file",
        found=name,
        help=f"did you mean {close[0]}?" if close else None,
        suggestion=close[0] if close else None,
    )
