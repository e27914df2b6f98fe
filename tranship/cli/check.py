"""`tranship check`: files one by one, against their format and its rules."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from tranship.cli.layout import BAD, GOOD, count, flow
from tranship.cli.load import check_document, format_of, load_any
from tranship.cli.output import Answer, answer_width
from tranship.cli.progress import progress
from tranship.schema.canonical import Json
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Severity


@dataclass(frozen=True)
class _Checked:
    """A file, its format and digest (None if it could not be read), and what is wrong with it."""

    file: str
    format: str | None
    digest: str | None
    found: tuple[Diagnostic, ...]

    @property
    def errors(self) -> int:
        return sum(one.severity is Severity.ERROR for one in self.found)


def run(files: Sequence[str]) -> Answer:
    """Check files; one that cannot be read keeps none of the others from being checked."""
    checked: list[_Checked] = []
    with progress(len(files)) as tell:
        for file in files:
            tell(file)
            checked.append(_check(file))
    width = answer_width()
    return Answer(
        [line for one in checked for line in _lines(one, width)],
        {"files": [_members(one) for one in checked]},
        diagnostics=tuple(found for one in checked for found in one.found),
    )


def _check(file: str) -> _Checked:
    try:
        document = load_any(file)
    except DiagnosticError as error:
        return _Checked(file, None, None, error.diagnostics)
    return _Checked(
        file, format_of(document), document.digest, check_document(document.value, document.source)
    )


def _lines(checked: _Checked, width: int) -> Iterator[Text]:
    verdict = (count(checked.errors, "error"), BAD) if checked.errors else ("ok", GOOD)
    return flow(f"{checked.file}  ", [verdict, checked.format or ""], width)


def _members(checked: _Checked) -> dict[str, Json]:
    return {
        "file": checked.file,
        "format": checked.format,
        "digest": checked.digest,
        "errors": checked.errors,
    }
