from tests.bugs.modules import KV_B, LAYERS
from tests.bugs.restate import assert_refused, findings, manifest, plan_of, tensor, whole
from tranship.schema.transfer import Options

SHAPE = (64, 32)
TENSORS = [tensor(KV_B, SHAPE, **LAYERS)]
SENDER, RECEIVER = (
    manifest(side, TENSORS, [whole(KV_B, "bf16", SHAPE, indices=LAYERS)])
    for side in ("sender", "receiver")
)


def test_a_plan_whose_rounds_wait_for_one_another_is_refused() -> None:
    """slime#2331, verl#7423, prime-rl#1667: collectives in another order on each side."""
    options = Options(staging_bytes=8192)
    plan = plan_of(SENDER, RECEIVER, options=options)
    assert len(plan.rounds) == 2
    first = plan.rounds[0].model_copy(update={"after": (1,)})
    waiting = plan.model_copy(update={"rounds": (first, *plan.rounds[1:])})
    assert_refused(
        findings(SENDER, RECEIVER, options=options, plan=waiting),
        "TS652",
        "rounds wait for one another: round 0 before round 1 before round 0",
    )
    assert findings(SENDER, RECEIVER, options=options, plan=plan) == ()
