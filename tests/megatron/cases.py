"""Small models, and how they are spread over ranks."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.models.configs import CONFIGS
from tests.models.produced import made
from tranship.runtime.frameworks.megatron.mesh import ParallelSizes
from tranship.runtime.transports.protocol import World
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Part
from tranship.schema.records import (
    BufferRecord,
    Ints,
    PieceRecord,
    TensorRecord,
    contiguous_strides,
)

Config = dict[str, Any]

DIVISOR = 8
"""Megatron pads the vocabulary to a multiple of this times `tp`: 100 to 104, or with two to 112."""

SMALL: Config = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 100,
}

FEW_EXPERTS: Config = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_group": 1,
    "use_qk_norm": True,
}

LATENT: Config = (
    SMALL
    | FEW_EXPERTS
    | {
        "num_key_value_heads": 8,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    }
)


@dataclass(frozen=True)
class Case:
    """A model, by an architecture and what is changed of its configuration, on a mesh.

    With `transformer_engine` experts are grouped, and linear layers held in blocks of FP8. With
    `wrapped` parameters are views of the buffers of a distributed optimizer.
    """

    architecture: str
    sizes: ParallelSizes
    chunks: int = 1
    changes: Config = field(default_factory=lambda: SMALL)
    mtp: bool = False
    receivers: int = 0
    transformer_engine: bool = False
    wrapped: bool = False

    @property
    def world(self) -> World:
        """The ranks of both sides."""
        return World(self.sizes.world_size, self.receivers)

    @property
    def config(self) -> Config:
        """The fields of config.json."""
        return CONFIGS[self.architecture] | self.changes

    @property
    def vocabulary(self) -> int:
        """Rows of the padded vocabulary."""
        step = DIVISOR * self.sizes.tp
        return -(-self.config["vocab_size"] // step) * step

    def whole(self, folder: Path) -> Manifest:
        """Make the manifest of the model on one rank."""
        sizes = {"world_size": 1, "make_vocab_size_divisible_by": DIVISOR}
        if not self.mtp:
            return made(folder, self.architecture, "megatron", sizes, **self.changes)
        layers = self.config["num_hidden_layers"]
        changes = self.changes | {"num_hidden_layers": layers + 1}
        longer = made(folder, self.architecture, "megatron", sizes, **changes)
        return with_predictor(longer, layers, self.config["hidden_size"])


def with_predictor(longer: Manifest, layer: int, hidden: int) -> Manifest:
    """Turn the last layer into one that predicts one more token, as DeepSeek's checkpoints have it.

    No layout that comes with tranship declares it.
    """
    declared, source, target = expand(longer), f"model.layers.{layer}", "mtp.layers.0"
    shapes: dict[str, tuple[str, Ints]] = {
        "enorm.weight": ("enorm.weight", (hidden,)),
        "hnorm.weight": ("hnorm.weight", (hidden,)),
        "eh_proj.weight": ("eh_proj.weight", (hidden, 2 * hidden)),
        "final_layernorm.weight": ("shared_head.norm.weight", (hidden,)),
    }
    tensors = [TensorRecord(f"{source}.{name}", shape) for name, shape in shapes.values()]
    added = [
        whole_buffer(f"{target}.{name}", f"{source}.{tensor}", shape)
        for name, (tensor, shape) in shapes.items()
    ]
    old, new = f"decoder.layers.{layer}.", f"{target}.transformer_layer."
    kept = [
        replace(record, name=new + record.name.removeprefix(old))
        if record.name.startswith(old)
        else record
        for record in declared.buffers
    ]
    return fold(
        replace(
            declared,
            tensors=tuple(sorted((*declared.tensors, *tensors))),
            buffers=tuple(sorted((*kept, *added))),
        )
    )


def whole_buffer(name: str, tensor: str, shape: Ints) -> BufferRecord:
    """Declare a buffer that is one whole tensor."""
    zeros, ones, strides = (0,) * len(shape), (1,) * len(shape), contiguous_strides(shape)
    piece = PieceRecord(tensor, Part.VALUE, zeros, shape, ones, 0, strides, zeros)
    return BufferRecord(0, name, DType.BF16, shape, strides, pieces=(piece,))


MOE = SMALL | {"moe_intermediate_size": 24}

BLOCKS: Config = MOE | {
    "hidden_size": 256,
    "head_dim": 128,
    "num_hidden_layers": 2,
    "moe_intermediate_size": 256,
}
"""What ranks hold of queries, keys and values is made of whole blocks of 128 x 128."""

CASES: dict[str, Case] = {
    "dense": Case("qwen3", ParallelSizes(4, tp=2, pp=2)),
    "tied": Case(
        "qwen3", ParallelSizes(4, tp=2, pp=2), changes=SMALL | {"tie_word_embeddings": True}
    ),
    "tied_on_one": Case("qwen3", ParallelSizes(1), changes=SMALL | {"tie_word_embeddings": True}),
    "biases": Case("glm4_moe", ParallelSizes(4, tp=2, ep=2, etp=1), changes=SMALL | FEW_EXPERTS),
    "one_group": Case("qwen3", ParallelSizes(2, tp=2), changes=SMALL | {"num_key_value_heads": 1}),
    "chunks": Case("qwen3", ParallelSizes(2, pp=2), chunks=2, receivers=2, wrapped=True),
    "experts": Case(
        "qwen3_moe", ParallelSizes(4, tp=2, pp=2, ep=2, etp=1), changes=MOE, receivers=2
    ),
    "split_experts": Case("qwen3_moe", ParallelSizes(4, tp=2, ep=2, etp=2), changes=MOE),
    "latent": Case("deepseek_v3", ParallelSizes(4, tp=2, ep=2, etp=1), changes=LATENT),
    "blocks": Case(
        "qwen3_moe",
        ParallelSizes(4, tp=2, ep=2, etp=1),
        changes=BLOCKS,
        receivers=2,
        transformer_engine=True,
    ),
    "alone": Case("qwen3_moe", ParallelSizes(1), changes=MOE),
    "predicted": Case("qwen3", ParallelSizes(4, tp=2, pp=2), mtp=True),
}
