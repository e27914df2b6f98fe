"""`tranship compile`: a transfer file to a verified plan beside it."""

from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from tranship.cli.layout import BAD, GOOD, Words, flow
from tranship.cli.load import load_transfer, plan_path, raise_errors, refuse_inputs, unwritten
from tranship.cli.output import Answer, Status, answer_width
from tranship.cli.progress import progress
from tranship.cli.proving import findings
from tranship.cli.show_plan import edge_counts, round_parts
from tranship.cli.summary import Summary, summarize, summary_members, summary_parts
from tranship.compiler.pipeline import PASSES, compile_inputs
from tranship.schema.codec import dump, write_atomically
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.plan import TransferPlan


def run(transfer: str, output: str | None, *, check: bool) -> Answer:
    """Compile, verify, and write the plan, or with `check` compare it with what is there.

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
        raise_errors(findings(plan, loaded, unwritten(target, after)))
        tell("add up")
        summary = summarize(plan, loaded.inputs.placement)
    state = "new" if before is None else "unchanged" if before == after else "changed"
    if not check and before != after:
        write_atomically(target, after)
    return Answer(
        [*_verdict(target, state, check=check), *_lines(plan, summary)],
        {"plan": target, "state": state, "summary": summary_members(summary)},
        Status.DIFFERENT if check and before != after else Status.OK,
        loaded.warnings,
        f"run: tranship compile {transfer}" if check and before != after else "",
    )


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
