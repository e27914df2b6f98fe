"""`tranship explain`: the page about a diagnostic code."""

import sys

import typer
from rich.markdown import Markdown
from rich.text import Text

from tranship.cli.output import Answer, console
from tranship.schema.canonical import Json
from tranship.schema.diagnostics import explanation, known_codes, title


def run(code: str | None, *, listing: bool) -> Answer:
    """Find the page about `code`, or list all codes.

    Raises:
        typer.BadParameter: there is no such code, or not exactly one of the two was asked for.
    """
    if listing == (code is not None):
        raise typer.BadParameter("give a code, or --list for all of them")
    if code is None:
        titles = {known: title(known) for known in known_codes()}
        members: list[Json] = [{"code": known, "title": text} for known, text in titles.items()]
        page = [Text(f"{known}  {text}") for known, text in titles.items()]
        return Answer(page, {"codes": members})
    return _page(code.upper())


def _page(code: str) -> Answer:
    if code not in known_codes():
        raise typer.BadParameter(f"there is no code {code}; tranship explain --list names all")
    text = explanation(code)
    shown = Markdown(text) if console(sys.stdout).is_terminal else Text(text.rstrip("\n"))
    return Answer([shown], {"code": code, "title": title(code), "page": text})
