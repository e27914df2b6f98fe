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
    whole,
)

NORM = "model.layers.{layer}.input_layernorm.weight"
LOCAL = "decoder.layers.{layer}.input_layernorm.weight"
ENGINE = manifest(
    "receiver",
    [tensor(NORM, (64,), layer="0..3")],
    [whole(NORM, "bf16", (64,), indices={"layer": "0..3"})],
)


def stage(name: str = LOCAL, **fields: object) -> Json:
    """Two layers per pipeline stage, which their rank calls 0 and 1."""
    return buffer(name, "bf16", (64,), piece(NORM, (64,)), **({"indices": LAYERS} | fields))


def test_layers_numbered_on_each_pipeline_stage_do_not_hide_the_others() -> None:
    """ModelExpress refit coverage: names collided; 51% of the model was refit, in the best time."""
    tensors = [tensor(NORM, (64,), layer="0..3")]
    assert_refused(
        findings(manifest("sender", tensors, [stage()], pp=(2, 1)), ENGINE),
        "TS188",
        "64 of the 64 elements of tensor 'model.layers.2.input_layernorm.weight' are on no rank",
        "names that count from 0 on every rank need that rank's offset",
    )
    assert_refused(
        findings(manifest("sender", [tensor(NORM, (64,), **LAYERS)], [stage()], pp=(2, 1)), ENGINE),
        "TS201",
        f"no sender piece holds {NORM} (2 of 4)",
        "found none for layer 2",
    )

    placed = stage(
        "decoder.layers.{layer % 2}.input_layernorm.weight",
        indices={"layer": "0..3"},
        at={"pp": "layer // 2"},
    )
    assert_fine(manifest("sender", tensors, [placed], pp=(2, 1)), ENGINE)


def fused() -> Json:
    rows = piece(GATE, (INNER, HIDDEN)), piece(UP, (INNER, HIDDEN), offset=INNER * HIDDEN)
    return buffer(GATE_UP, "bf16", (2 * INNER, HIDDEN), *rows, indices=LAYERS)


def test_a_name_that_is_not_found_is_no_reason_to_go_on() -> None:
    """torchstore direct_weight_sync, miles p2p: `continue` on a name that the other side lacks."""
    engine = manifest("receiver", dense_mlp(), [fused()])
    only = dense_mlp()[:1]
    held = [whole(GATE, "bf16", (INNER, HIDDEN), indices=LAYERS)]
    assert_refused(
        findings(manifest("sender", only, held), engine),
        "TS201",
        f"no sender piece holds {UP} (2 of 2)",
        f"{GATE} [256, 128] is close",
    )

    both = [*held, whole(UP, "bf16", (INNER, HIDDEN), indices=LAYERS)]
    sender = manifest("sender", dense_mlp(), both)
    plan = plan_of(sender, engine)
    skipped = plan.model_copy(update={"edges": plan.edges[:1]})
    unwritten, unused = findings(sender, engine, plan=skipped)
    assert_refused(
        [unwritten],
        "TS610",
        "element [256, 0] of 'model.layers.0.mlp.gate_up_proj.weight' on receiver rank 0 is never "
        "written",
        "expected element [0, 0] of 'model.layers.0.mlp.up_proj.weight'",
    )
    assert_refused([unused], "TS630", "no edge uses 'model.layers.0.mlp.up_proj.weight'")
    assert findings(sender, engine, plan=plan) == ()
