"""`tranship compile`: a transfer file to a verified plan beside it."""

from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from tranship.cli.diff import Comparison, compare_plans, comparison_lines, comparison_members
from tranship.cli.effects import without_effect
from tranship.cli.layout import BAD, GOOD, Words, flow
from tranship.cli.load import (
    check_document,
    load_transfer,
    parse_any,
    plan_path,
    raise_errors,
    refuse_inputs,
    unwritten,
)
from tranship.cli.output import Answer, Status, answer_width, promoted
from tranship.cli.progress import progress
from tranship.cli.proving import findings
from tranship.cli.show_plan import edge_counts, round_parts
from tranship.cli.summary import Summary, summarize, summary_members, summary_parts
from tranship.compiler.pipeline import PASSES, compile_inputs
from tranship.schema.codec import Document, digest, dump, write_atomically
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.plan import TransferPlan


def run(transfer: str, output: str | None, *, check: bool, is_strict: bool = False) -> Answer:
    """Compile, verify, and write the plan, or with `check` compare it with what is there.

    With `is_strict` nothing is written where there are warnings.

    Raises:
        DiagnosticError: an input is wrong, the plan was refused, or a file is in the way.
    """
    with progress(len(PASSES) + 3) as tell:
        tell("read")
        loaded = load_transfer(transfer)
        target = output or plan_path(transfer)
        refuse_inputs(target, loaded.files)
        before = _present_bytes(target)
        plan = compile_inputs(loaded.inputs, tell)
        tell("verify")
        after = dump(plan)
        source = unwritten(target, after)
        raise_errors(findings(plan, loaded, source))
        warnings = (*loaded.warnings, *without_effect(plan, loaded))
        raise_errors(promoted(warnings) if is_strict else warnings)
        tell("add up")
        summary = summarize(plan, loaded.inputs.placement)
    state = "new" if before is None else "unchanged" if before == after else "changed"
    if not check and before != after:
        write_atomically(target, after)
    is_stale = check and before != after
    page = [*_verdict(target, state, check=check), *_lines(plan, summary)]
    document = {"plan": target, "state": state, "summary": summary_members(summary)}
    stale = _changes(target, before, Document(plan, source, digest(after))) if is_stale else None
    return Answer(
        [*page, *(comparison_lines(stale, answer_width()) if stale else ())],
        {**document, **({"changes": comparison_members(stale)} if stale else {})},
        Status.DIFFERENT if is_stale else Status.OK,
        warnings,
        f"run: tranship compile {transfer}" if is_stale else "",
    )


def _changes(target: str, before: bytes | None, after: Document[TransferPlan]) -> Comparison | None:
    """Compare the plan with what is in its place, if that can be read as a plan."""
    try:
        present = parse_any((before or b"").decode(), target)
        raise_errors(check_document(present.value, present.source))
    except (UnicodeDecodeError, DiagnosticError):
        return None
    if not isinstance(present.value, TransferPlan):
        return None
    return compare_plans(Document(present.value, present.source, present.digest), after)


def _present_bytes(target: str) -> bytes | None:
    """Read what is at the place of the plan; None if nothing is.

    Raises:
        DiagnosticError: TS100, it cannot be read.
    """
    try:
        return Path(target).read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = (reason or str(error)).lower()
        raise DiagnosticError([Diagnostic("TS100", message, Location(target))]) from None


_WRITTEN = {"new": "written", "changed": "written, changed", "unchanged": "unchanged"}
_CHECKED = {"new": "missing", "changed": "out of date", "unchanged": "up to date"}


def _verdict(target: str, state: str, *, check: bool) -> Iterator[Text]:
    word = (_CHECKED if check else _WRITTEN)[state]
    style = BAD if check and state != "unchanged" else GOOD
    return flow(f"{target}  ", [(word, style), "all proofs hold"], answer_width())


def _lines(plan: TransferPlan, summary: Summary) -> Iterator[Text]:
    lines: list[tuple[str, list[Words]]] = [
        ("edges", [edge_counts(plan)]),
        ("rounds", [*round_parts(plan)]),
        *((name, [*parts]) for name, parts in summary_parts(summary)),
    ]
    for name, parts in lines:
        yield from flow(f"{name:<11}", parts, answer_width(), 2)
