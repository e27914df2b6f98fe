import pytest

from tests.bugs.modules import EXPERTS, HIDDEN, INNER, LAYERS, W13, expert, expert_mlp
from tests.bugs.restate import Json, assert_fine, assert_refused, buffer, findings, manifest, piece

ROWS = INNER * HIDDEN
TENSORS = expert_mlp()
CHECKPOINT = f"{W13}_checkpoint"


def w13(name: str, **fields: object) -> Json:
    """All experts, each with its gate above its up projection."""
    return buffer(
        name,
        "bf16",
        (EXPERTS, 2 * INNER, HIDDEN),
        *(
            piece(
                expert(part),
                (INNER, HIDDEN),
                indices={"expert": "0..1"},
                offset=f"expert * {2 * ROWS} + {half * ROWS}",
            )
            for half, part in enumerate(("gate", "up"))
        ),
        indices=LAYERS,
        **fields,
    )


TRAINER = manifest("sender", TENSORS, [w13("decoder.layers.{layer}.mlp.experts.linear_fc1")])


@pytest.mark.parametrize(
    "layout", ["cutlass_w31", "trtllm_block_major_k", "aiter_shuffle_16x16", "marlin"]
)
def test_checkpoint_values_are_not_written_into_a_kernels_layout(layout: str) -> None:
    """prime-rl#2341 (w13 swapped), NeMo-RL#3659 (block layout), vllm#42821 and SkyRL#1680 (reload).

    The engine changes the layout of its experts after loading, and a later `copy_` of checkpoint
    values into the live buffers corrupts them silently.
    """
    gate, up = findings(TRAINER, manifest("receiver", TENSORS, [w13(W13, layout=layout)]))
    assert_refused([up], "TS403", f"holds {expert('up')} in layout {layout}")
    assert_refused(
        [gate],
        "TS403",
        f"{W13} holds {expert('gate')} in layout {layout}, and the sender in row_major",
        f"expected equal layouts; found row_major to {layout}",
        "derive the kernel layout from it with its own recipe after the update",
    )

    recipe = {"kind": "derived", "recipe": f"to_{layout}", "inputs": [CHECKPOINT]}
    shape = (EXPERTS, 2 * INNER, HIDDEN)
    kernel = buffer(W13, "bf16", shape, role=recipe, layout=layout, indices=LAYERS)
    assert_fine(TRAINER, manifest("receiver", TENSORS, [w13(CHECKPOINT), kernel]))


def test_a_layout_that_nobody_knows_is_not_taken_for_row_major() -> None:
    """prime-rl#2341, when the adapter makes up a name for the order."""
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [w13(W13, layout="cutlas_w31")])),
        "TS187",
        f"buffer {W13!r} has layout 'cutlas_w31', which is not known",
        "did you mean cutlass_w31?",
    )
