from tests.bugs.modules import KV_B, LAYERS
from tests.bugs.restate import (
    assert_refused,
    buffer,
    findings,
    manifest,
    piece,
    plan_of,
    tensor,
    whole,
)
from tranship.schema.placement import PLACEMENT_FORMAT, Placement, Seat

SHAPE = (64, 32)
TENSORS = [tensor(KV_B, SHAPE, **LAYERS)]
SENDER = manifest("sender", TENSORS, [whole(KV_B, "bf16", SHAPE, indices=LAYERS)], dp=(4, 1))
SHARD = buffer(KV_B, "bf16", (32, 32), piece(KV_B, (32, 32), ("tp * 32", 0)), indices=LAYERS)
RECEIVER = manifest("receiver", TENSORS, [SHARD], tp=(2, 1), dp=(2, 2))


def test_a_rank_takes_the_payload_of_its_own_device() -> None:
    """sglang#32685: payloads were picked by tp rank, so that ranks opened a peer GPU's buffer."""
    own = Seat(host=0, device="rank")
    placement = Placement(format=PLACEMENT_FORMAT, sender=own, receiver=own)
    plan = plan_of(SENDER, RECEIVER, placement=placement)
    assert plan.seats is not None
    by_tp = plan.seats.model_copy(update={"receiver": Seat(host=0, device="rank % 2")})
    assert_refused(
        findings(
            SENDER,
            RECEIVER,
            placement=placement,
            plan=plan.model_copy(update={"seats": by_tp}),
        ),
        "TS601",
        "the plan's seats are not the placement's",
        "receiver=Seat(host=0, device='rank'); found",
        "receiver=Seat(host=0, device='rank % 2')",
    )
    assert findings(SENDER, RECEIVER, placement=placement, plan=plan) == ()
