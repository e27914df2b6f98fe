"""Any transfer that can be declared compiles, verifies, runs, and delivers the oracle's bytes."""

import os

import torch
from hypothesis import HealthCheck, given, note, settings

from tests.properties.build import build, held_elements, widen
from tests.properties.dense import Dense
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.runtime.execute import simulate
from tranship.schema.codec import dump
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.testing import UNUSED_TENSOR, Case, Limits, cases, policy_of
from tranship.schema.transfer import Options

EXAMPLES = int(os.environ.get("TRANSHIP_EXAMPLES", "300"))


LIMITS = Limits(ranks=18)
STAGING = (1 << 30, 1 << 13, 1 << 12)

thorough = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@settings(thorough, max_examples=max(EXAMPLES // 3, 1))
@given(case=cases(LIMITS))
def test_the_shards_that_are_drawn_are_dtensors(case: Case) -> None:
    for side in Side:
        declared, expected = held_elements(case, side)
        declared = {key: n for key, n in declared.items() if key[1] != UNUSED_TENSOR}
        assert declared == dict(expected)


@thorough
@given(case=cases(LIMITS, STAGING))
def test_every_declared_transfer_delivers_the_oracles_bytes(case: Case) -> None:
    dense = Dense(case)
    sender, expected = build(case, Side.SENDER, dense), build(case, Side.RECEIVER, dense)
    manifests = fold(sender.declaration), fold(expected.declaration)
    policy = policy_of(case)
    plan, options = _compiled(case, manifests, policy)
    note(dump(plan).decode())
    findings = verify(
        plan,
        *manifests,
        policy,
        None,
        digests=digests_of(*manifests, policy, None, options),
        options=options,
    )
    assert findings == ()
    received = {
        rank: {name: _blank(tensor) for name, tensor in memory.items()}
        for rank, memory in expected.memory.items()
    }
    simulate(plan, sender.memory, received, recipes={"widen": widen})
    for rank, memory in expected.memory.items():
        for name, tensor in memory.items():
            assert torch.equal(_bytes(received[rank][name]), _bytes(tensor)), (rank, name)


def _compiled(
    case: Case, manifests: tuple[Manifest, Manifest], policy: Policy | None
) -> tuple[TransferPlan, Options]:
    """Compile with the drawn staging memory, or with plenty where a block alone exceeds it."""
    options = Options.model_validate({"formula": case.formula, "staging_bytes": case.staging_bytes})
    try:
        return compile_transfer(*manifests, policy=policy, options=options), options
    except DiagnosticError as error:
        if {found.code for found in error.diagnostics} != {"TS501"}:
            raise
        plenty = options.model_copy(update={"staging_bytes": 1 << 30})
        return compile_transfer(*manifests, policy=policy, options=plenty), plenty


def _blank(tensor: torch.Tensor) -> torch.Tensor:
    """Memory like `tensor`'s with none of its values."""
    blank = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = torch.empty(0, dtype=torch.uint8).set_(blank.untyped_storage())
    memory.fill_(0x5A)
    return blank


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The elements' bytes, in row-major order."""
    return (
        tensor.contiguous().reshape(-1).view(torch.uint8)
        if tensor.numel()
        else torch.empty(0, dtype=torch.uint8)
    )
