"""The compiler: two manifests in, a plan out. The passes in the order in which they run."""

from collections.abc import Callable
from typing import Any

from tranship.compiler.emit import emit
from tranship.compiler.encode import encode
from tranship.compiler.inputs import Inputs
from tranship.compiler.intersect import intersect
from tranship.compiler.match import match
from tranship.compiler.route import route
from tranship.compiler.schedule import schedule
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options

PASSES: tuple[Callable[..., Any], ...] = (match, encode, intersect, route, schedule, emit)
"""What `compile_inputs` runs, for readers and for `--verbose`."""


def compile_inputs(
    inputs: Inputs, progress: Callable[[str], None] = lambda name: None
) -> TransferPlan:
    """Run all passes; `progress` is told the name of each before it starts.

    Raises:
        DiagnosticError: what the first pass that found anything found, all of it.
    """
    progress("match")
    matched = match(inputs)
    progress("encode")
    edges = encode(inputs, matched.matches)
    progress("intersect")
    edges = intersect(inputs, edges)
    progress("route")
    edges = route(inputs, edges)
    progress("schedule")
    scheduled = schedule(inputs, edges)
    progress("emit")
    return emit(inputs, scheduled, matched.unused)


def compile_transfer(
    sender: Manifest,
    receiver: Manifest,
    policy: Policy | None = None,
    placement: Placement | None = None,
    options: Options | None = None,
) -> TransferPlan:
    """Compile manifests at hand; errors name the inputs instead of files.

    Raises:
        DiagnosticError: as `compile_inputs`.
    """
    return compile_inputs(Inputs(sender, receiver, policy, placement, options or Options()))
