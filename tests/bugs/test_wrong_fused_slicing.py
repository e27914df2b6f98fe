from typing import Any

from tests.bugs.modules import GATE, GATE_UP, HIDDEN, INNER, LAYERS, UP, dense_mlp
from tests.bugs.restate import (
    Json,
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    piece,
    plan_of,
    tensor,
)
from tranship.schema.manifest import Manifest
from tranship.schema.plan import TransferPlan

FC1 = "decoder.layers.{layer}.mlp.linear_fc1.weight"
SHARD = INNER // 2


def halves(name: str) -> Json:
    """Each rank of tp holds its half of the gate, then its half of the up projection."""
    gate = piece(GATE, (SHARD, HIDDEN), (f"tp * {SHARD}", 0))
    up = piece(UP, (SHARD, HIDDEN), (f"tp * {SHARD}", 0), offset=SHARD * HIDDEN)
    return buffer(name, "bf16", (2 * SHARD, HIDDEN), gate, up, indices=LAYERS)


def trainer() -> Manifest:
    return manifest("sender", dense_mlp(), [halves(FC1)], "megatron", tp=(2, 1))


def engine() -> Manifest:
    return manifest("receiver", dense_mlp(), [halves(GATE_UP)], "sglang", tp=(2, 1))


def halved(plan: TransferPlan) -> TransferPlan:
    """Take the gate from rank 0 and the up projection from rank 1, whole."""
    whole: dict[str, Any] = {"start": (0, 0), "extent": (INNER, HIDDEN), "offset": 0}
    edges = (
        edge.model_copy(
            update={"sender": edge.sender.model_copy(update=whole | {"at": {"tp": rank}})}
        )
        for rank, edge in enumerate(plan.edges)
    )
    return plan.model_copy(update={"edges": tuple(edges)})


def test_gathered_glu_shards_are_not_cut_in_half() -> None:
    """AReaL#1406: ranks gathered to [g0, u0, g1, u1], and the converter took halves of that."""
    plan = plan_of(trainer(), engine())
    first, second = findings(trainer(), engine(), plan=halved(plan))
    assert_refused(
        [first],
        "TS603",
        "'decoder.layers.0.mlp.linear_fc1.weight' on sender rank 0 has no such piece of "
        "'model.layers.0.mlp.gate_proj.weight'",
        "expected extent [128, 128]; found extent [256, 128]",
    )
    assert_refused([second], "TS603", "mlp.up_proj.weight", "offset 16384; found", "offset 0")

    assert findings(trainer(), engine(), plan=plan) == ()


def test_a_fused_tensor_is_not_taken_for_its_parts() -> None:
    """AReaL#1406, told the other way: the trainer declares one tensor of [gate; up]."""
    tensors = [tensor(GATE_UP, (2 * INNER, HIDDEN), **LAYERS)]
    rows = piece(GATE_UP, (INNER, HIDDEN), (f"tp * {INNER}", 0))
    fused = buffer(FC1, "bf16", (INNER, HIDDEN), rows, indices=LAYERS)
    found = findings(manifest("sender", tensors, [fused], tp=(2, 1)), engine())
    assert {one.code for one in found} == {"TS201", "TS202"}
    assert f"no sender piece holds {GATE}" in " ".join(one.message for one in found)

    assert_fine(trainer(), engine())
