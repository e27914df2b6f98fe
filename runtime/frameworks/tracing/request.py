"""What is to be traced, and what became of it: messages between a process and its child."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Frozen

DeepGemm = Literal["power_of_two", "packed"]
"""How DeepGEMM reads scales: powers of two in float32, or as `schema/layouts.py` packs them."""


class TraceRequest(Frozen):
    """What to trace.

    Attributes:
        folder: where the model's config.json is.
        tp, ep: ranks, and groups of them that experts are spread over.
        ranks: which ranks to trace; if none are named, as many as tell what all of them hold.
        arguments: further arguments of the engine, under its own names.
        sources: dtype and shape of every tensor of the checkpoint.
        deepgemm: how DeepGEMM's kernels read scales, if these are to be declared so.
        output: folder for `RANK.json`, an `Answer`, and for the list of ranks that were traced.
    """

    folder: Path
    tp: int = Field(ge=1)
    ep: int = Field(ge=1)
    ranks: tuple[int, ...]
    arguments: dict[str, int | bool | str]
    sources: dict[str, tuple[DType, tuple[int, ...]]]
    deepgemm: DeepGemm | None = None
    output: Path

    @property
    def list_of_ranks(self) -> Path:
        """Where the ranks that were traced are written down."""
        return self.output / "ranks.json"

    def answer_of(self, rank: int) -> Path:
        """Where a rank's answer is."""
        return self.output / f"{rank}.json"


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


def read_answer(path: Path) -> Answer:
    """Read a rank's answer."""
    return Answer.model_validate_json(path.read_text(encoding="utf-8"))


def refusal(error: DiagnosticError) -> Answer:
    """Answer with what was found."""
    return Answer(findings=tuple(_told(error)))


def _told(error: DiagnosticError) -> Iterator[Told]:
    for found in error.diagnostics:
        file = found.at.file if found.at else ""
        yield Told(code=found.code, message=found.message, file=file, help=found.help)
