"""Sizes of the demo's model, a small one of the shape of Qwen3-MoE."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """What Qwen3-MoE's config.json calls these fields.

    The hidden size is three FP8 blocks, so that two FSDP ranks cut the middle one: the demo shows
    both places of quantization. The vocabulary is no multiple of 64, so that the engine pads it.
    """

    hidden_size: int = 384
    moe_intermediate_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 128
    num_experts: int = 8
    num_experts_per_tok: int = 2
    vocab_size: int = 1000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def query_size(self) -> int:
        """Rows of q_proj."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Rows of k_proj, and of v_proj."""
        return self.num_key_value_heads * self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """The vocabulary as the engine holds it."""
        return -(-self.vocab_size // 64) * 64


FSDP_SIZE = 2
TP_SIZE = 2
BLOCK = 128
SEQUENCE = 32
