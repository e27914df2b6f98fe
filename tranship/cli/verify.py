"""`tranship verify`: prove a plan that lies in a file."""

from time import perf_counter

import typer

from tranship.cli.effects import without_effect
from tranship.cli.layout import BAD, GOOD, count, flow
from tranship.cli.load import check_document, load_any, load_transfer, plan_path, raise_errors
from tranship.cli.output import Answer, answer_width, tick
from tranship.cli.progress import progress
from tranship.cli.proving import findings, proof_lines, proof_members
from tranship.schema.codec import Document, load
from tranship.schema.plan import TransferPlan
from tranship.schema.transfer import Transfer


def run(file: str, transfer: str | None) -> Answer:
    """Verify the plan of a transfer file, or the plan `file` against the transfer file `transfer`.

    Raises:
        DiagnosticError: a file cannot be read or is wrong; the plan's own errors among them.
        typer.BadParameter: `file` is a plan without a transfer file, or neither.
    """
    started = perf_counter()
    with progress(2) as tell:
        tell("read")
        plan_file, transfer_file = _files(file, transfer)
        loaded = load_transfer(transfer_file)
        plan = _load_plan(plan_file)
        tell("verify")
        found = findings(plan.value, loaded, plan.source)
    seconds = perf_counter() - started
    width = answer_width()
    verdict = (count(len(found), "finding"), BAD) if found else ("verified", GOOD)
    page = [
        *flow(f"{plan_file}  ", [verdict, f"in {seconds:.1f} s"], width),
        *proof_lines(found, width, tick()),
    ]
    document = {"plan": plan_file, "transfer": transfer_file, "proofs": proof_members(found)}
    warnings = (*loaded.warnings, *(() if found else without_effect(plan.value, loaded)))
    return Answer(page, document, diagnostics=(*warnings, *found))


def _files(file: str, transfer: str | None) -> tuple[str, str]:
    """Return the plan's and the transfer file's paths."""
    if transfer is not None:
        return file, transfer
    match load_any(file).value:
        case Transfer():
            return plan_path(file), file
        case TransferPlan():
            raise typer.BadParameter(f"{file} is a plan: name its transfer file with --transfer")
        case _:
            raise typer.BadParameter(f"{file} is neither a transfer file nor a plan")


def _load_plan(path: str) -> Document[TransferPlan]:
    document = load(path, TransferPlan)
    raise_errors(check_document(document.value, document.source))
    return document
