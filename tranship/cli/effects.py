"""What of a transfer's inputs its plan makes no use of, as warnings: no byte is wrong for it."""

from collections.abc import Iterator

from tranship.cli.load import Loaded
from tranship.compiler.inputs import name_matches
from tranship.schema.diagnostics import Diagnostic, Severity
from tranship.schema.plan import Edge, TransferPlan
from tranship.schema.policy import Allowance


def without_effect(plan: TransferPlan, loaded: Loaded) -> Iterator[Diagnostic]:
    """Find allowances that no edge needs (TS720), and options that decide nothing (TS721)."""
    inputs = loaded.inputs
    for number, allowance in enumerate(inputs.policy.allow if inputs.policy else ()):
        if not any(_is_needed(allowance, edge) for edge in plan.edges):
            yield Diagnostic(
                "TS720",
                f"no edge needs the allowance to {allowance.edge} {allowance.tensors!r} from "
                f"{allowance.sender_dtype} to {allowance.receiver_dtype}",
                inputs.at("policy", f"/allow/{number}"),
                Severity.WARNING,
                help="remove the line, or correct its pattern and dtypes",
            )
    formulas = {edge.formula for edge in plan.edges if edge.formula}
    if "formula" in inputs.options.model_fields_set and inputs.options.formula not in formulas:
        used = f"the plan's edges use {', '.join(sorted(formulas))}" if formulas else ""
        yield Diagnostic(
            "TS721",
            f"no edge quantizes by the formula {inputs.options.formula!r}",
            inputs.at("transfer", "/options/formula"),
            Severity.WARNING,
            help=used or "the plan has no edge that quantizes; remove the option",
        )


def _is_needed(allowance: Allowance, edge: Edge) -> bool:
    """Whether an edge is of a kind that an allowance is about."""
    return (
        edge.op == allowance.edge
        and edge.sender.dtype == allowance.sender_dtype
        and edge.receiver.dtype == allowance.receiver_dtype
        and name_matches(edge.tensor, allowance.tensors)
    )
