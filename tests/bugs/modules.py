"""Names and small shapes of the modules in which the bugs were."""

from tests.bugs.restate import Json, tensor

LAYERS = {"layer": "0..1"}
MLP = "model.layers.{layer}.mlp"
ATTENTION = "model.layers.{layer}.self_attn"

GATE, UP, DOWN = (f"{MLP}.{part}_proj.weight" for part in ("gate", "up", "down"))
GATE_UP = f"{MLP}.gate_up_proj.weight"
ROUTER = f"{MLP}.gate.weight"
ROUTER_BIAS = f"{MLP}.gate.e_score_correction_bias"
W13 = f"{MLP}.experts.w13_weight"
W2 = f"{MLP}.experts.w2_weight"
KV_B = f"{ATTENTION}.kv_b_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

INNER, HIDDEN, EXPERTS = 256, 128, 2


def expert(part: str) -> str:
    """Name one projection of every expert."""
    return f"{MLP}.experts.{{expert}}.{part}_proj.weight"


def dense_mlp() -> list[Json]:
    """Gate and up projection of two layers."""
    return [tensor(name, (INNER, HIDDEN), **LAYERS) for name in (GATE, UP)]


def expert_mlp() -> list[Json]:
    """Gate and up projection of the experts of two layers."""
    shape, members = (INNER, HIDDEN), f"0..{EXPERTS - 1}"
    return [tensor(expert(part), shape, **LAYERS, expert=members) for part in ("gate", "up")]
