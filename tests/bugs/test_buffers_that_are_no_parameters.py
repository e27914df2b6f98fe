"""Buffers that `named_parameters` does not list: forgotten by a sender, or reset by a receiver."""

import pytest

from tests.bugs.modules import LAYERS, ROUTER, ROUTER_BIAS
from tests.bugs.restate import (
    Json,
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    tensor,
    whole,
)

WEIGHT = tensor(ROUTER, (8, 128), **LAYERS)
BIAS = tensor(ROUTER_BIAS, (8,), **LAYERS)
HELD = whole(ROUTER, "bf16", (8, 128), indices=LAYERS)
HELD_BIAS = whole(ROUTER_BIAS, "f32", (8,), indices=LAYERS, kind="buffer")
ENGINE = manifest("receiver", [WEIGHT, BIAS], [HELD, HELD_BIAS])


def test_a_router_bias_that_the_trainer_does_not_list_is_missed() -> None:
    """verl#5688: FSDP's state skipped `e_score_correction_bias`, which is a buffer."""
    assert_refused(
        findings(manifest("sender", [WEIGHT], [HELD]), ENGINE),
        "TS201",
        f"no sender piece holds {ROUTER_BIAS}",
        f"expected a sender piece of {ROUTER_BIAS} [8]",
        "declare it on the sender",
    )
    assert_fine(manifest("sender", [WEIGHT, BIAS], [HELD, HELD_BIAS]), ENGINE)


def test_a_declared_router_bias_that_no_rank_holds_is_missed() -> None:
    """verl#5688, by a trainer that knows the checkpoint's names and lists parameters alone."""
    assert_refused(
        findings(manifest("sender", [WEIGHT, BIAS], [HELD]), ENGINE),
        "TS188",
        f"8 of the 8 elements of tensor {ROUTER_BIAS!r} are on no rank",
        "buffers count as much as parameters",
    )


ROOT_SIZE = "model.layers.{layer}.router.root_size"
CACHE = "model.layers.{layer}.self_attn.rotary_emb.cos_sin_cache"
INV_FREQ = "model.layers.{layer}.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize(("name", "shape"), [(ROOT_SIZE, []), (CACHE, [512, 64]), (INV_FREQ, [32])])
def test_a_buffer_that_no_checkpoint_holds_is_not_overwritten(name: str, shape: list[int]) -> None:
    """vllm#44371 (`root_size` reset to 1.0), vllm#16564, #29341 and NeMo-RL#2631 (rotary buffers).

    A reload took buffers that the model computes for weights, and nobody had values for them.
    """
    trainer = manifest("sender", [WEIGHT], [HELD])
    taken = whole(name, "f32", shape, indices=LAYERS, kind="buffer")
    declared = [WEIGHT, tensor(name, shape, **LAYERS)]
    assert_refused(
        findings(trainer, manifest("receiver", declared, [HELD, taken])),
        "TS201",
        f"no sender piece holds {name}",
        "declare the receiver's buffer constant or derived",
    )

    constant = {"kind": "constant", "reason": "computed from the config when the model is built"}
    kept: Json = buffer(name, "f32", shape, role=constant, kind="buffer", indices=LAYERS)
    assert_fine(trainer, manifest("receiver", [WEIGHT], [HELD, kept]))


def test_a_buffer_must_say_what_becomes_of_it() -> None:
    """vllm#16564, by an adapter that lists the cache without a role."""
    silent = buffer(CACHE, "f32", (512, 64), kind="buffer", indices=LAYERS)
    assert_refused(
        findings(
            manifest("sender", [WEIGHT], [HELD]), manifest("receiver", [WEIGHT], [HELD, silent])
        ),
        "TS170",
        f"buffer {CACHE!r} has neither piece nor fill",
        "where no update changes it, declare it constant and say why",
    )
