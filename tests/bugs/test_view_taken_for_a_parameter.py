from tests.bugs.modules import LAYERS
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

CONV = "model.layers.{layer}.linear_attn.conv1d.weight"
SHAPE, VIEW = (64, 1, 4), (64, 4)
TENSORS = [tensor(CONV, SHAPE, **LAYERS)]
TRAINER = manifest("sender", TENSORS, [whole(CONV, "bf16", SHAPE, indices=LAYERS)])


def test_a_transformed_view_is_not_a_parameter_of_that_name() -> None:
    """NeMo-RL#3739: a refit took views of Qwen3.5's weights for the weights themselves."""
    view = manifest(
        "receiver",
        [tensor(CONV, VIEW, **LAYERS)],
        [whole(CONV, "bf16", VIEW, indices=LAYERS)],
    )
    assert_refused(
        findings(TRAINER, view),
        "TS203",
        f"the two sides give {CONV} different shapes",
        "expected [64, 1, 4] (sender); found [64, 4] (receiver)",
        "declare a view with its tensor's own dims",
    )

    held = buffer(CONV, "bf16", VIEW, piece(CONV, SHAPE, strides=[4, 4, 1]), indices=LAYERS)
    assert_fine(TRAINER, manifest("receiver", TENSORS, [held]))


def test_a_view_is_an_alias_and_is_not_written_twice() -> None:
    """The same, where the view is declared beside the parameter that it is a view of."""
    role = {"kind": "alias", "of": CONV}
    held = whole(CONV, "bf16", SHAPE, indices=LAYERS)
    name = "model.layers.{layer}.linear_attn.conv_view"
    view = buffer(name, "bf16", VIEW, role=role, kind="attribute", indices=LAYERS)
    written = view | {"pieces": [piece(CONV, SHAPE, strides=[4, 4, 1])]}
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [held, written])),
        "TS171",
        f"buffer {name!r} is alias, and has pieces",
        "expected pieces and fills in transfer buffers alone",
    )
    assert_fine(TRAINER, manifest("receiver", TENSORS, [held, view]))
