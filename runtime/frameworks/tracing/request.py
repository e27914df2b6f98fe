"""What is to be traced, and what became of it: messages between a process and its child."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Frozen


class TraceRequest(Frozen):
    """What to trace.

    Attributes:
        folder: where the model's config.json is.
        tp, ep: ranks, and groups of them that experts are spread over.
        ranks: which ranks to trace.
        arguments: further arguments of the engine, under its own names.
        sources: dtype and shape of every tensor of the checkpoint.
        output: folder for `RANK.json`, an `Answer`.
    """

    folder: Path
    tp: int = Field(ge=1)
    ep: int = Field(ge=1)
    ranks: tuple[int, ...]
    arguments: dict[str, int | bool | str]
    sources: dict[str, tuple[DType, tuple[int, ...]]]
    output: Path


class Told(Frozen):
    """A finding on its way to the process that asked."""

    code: str
    message: str
    file: str
    help: str | None = None

    def diagnostic(self) -> Diagnostic:
        """Return the finding as it was."""
        return Diagnostic(self.code, self.message, Location(self.file), help=self.help)


class Answer(Frozen):
    """What became of a rank: a manifest, or why there is none."""

    manifest: str | None = None
    findings: tuple[Told, ...] = ()


def refusal(error: DiagnosticError) -> Answer:
    """Answer with what was found."""
    return Answer(findings=tuple(_told(error)))


def _told(error: DiagnosticError) -> Iterator[Told]:
    for found in error.diagnostics:
        file = found.at.file if found.at else ""
        yield Told(code=found.code, message=found.message, file=file, help=found.help)
