from tests.bugs.modules import EXPERTS, HIDDEN, INNER, LAYERS, W2, expert
from tests.bugs.restate import (
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    piece,
    tensor,
    whole,
)
from tranship.schema.manifest import Axis

DOWN = expert("down")
MEMBERS = {"layer": "0..1", "expert": "0..1"}
SHAPE = (HIDDEN, INNER)
TENSORS = [tensor(DOWN, SHAPE, **MEMBERS)]
TRAINER = manifest("sender", TENSORS, [whole(DOWN, "bf16", SHAPE, indices=MEMBERS)])


def test_expert_ranks_past_the_group_are_refused() -> None:
    """NeMo-RL#3591: experts over more ranks than tp got their offset twice, past the group."""
    held = piece(DOWN, SHAPE, indices={"expert": "0..1"}, at={"ep": "expert"})
    shard = buffer(W2, "bf16", (EXPERTS // 2, *SHAPE), held, indices=LAYERS)
    good = manifest("receiver", TENSORS, [shard], tp=(1, 1), ep=(2, 1))
    twice = (Axis(name="tp", size=1, stride=1), Axis(name="ep", size=2, stride=2))
    assert_refused(
        findings(TRAINER, good.model_copy(update={"axes": twice})),
        "TS150",
        "no rank has coordinate 1 on axis 'ep'",
        "expected stride * (size - 1) < world_size, which is 2",
        "found 2 * 1 = 2",
    )
    assert_fine(TRAINER, good)
