"""Engines to trace and to load: small models, and over how many ranks they are spread."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.models.configs import CONFIGS, FP8, write_config
from tranship.models.produce import Request, produce
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Case:
    """A model of an architecture, with some of its config changed, on `tp` ranks."""

    model: str
    fp8: bool
    tp: int
    ep: int
    changes: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def title(self) -> str:
        """What the case is called, and its folder."""
        form = "fp8" if self.fp8 else "bf16"
        return "-".join([self.model, form, f"tp{self.tp}", f"ep{self.ep}", *self.changes])

    def write(self, folder: Path) -> str:
        """Write config.json, and return its path.

        vLLM quantizes the routers of Qwen3-MoE unless the config leaves them out, as that of the
        published checkpoint does.
        """
        if not self.fp8:
            return write_config(folder, self.model, **self.changes)
        layers = CONFIGS[self.model]["num_hidden_layers"]
        plain = [f"model.layers.{layer}.mlp.gate" for layer in range(layers)]
        quantization = FP8["quantization_config"] | {"modules_to_not_convert": plain}
        return write_config(folder, self.model, quantization_config=quantization, **self.changes)

    def checkpoint(self, config: str) -> Manifest:
        """Return what the model's checkpoint holds."""
        return produce(Request(self.model, config, "checkpoint", {}))

    def request(self, folder: Path, ranks: tuple[int, ...]) -> TraceRequest:
        """Ask for ranks of the engine whose config.json lies in a folder."""
        buffers = expand(self.checkpoint(str(folder / "config.json"))).buffers
        return TraceRequest(
            folder=folder,
            tp=self.tp,
            ep=self.ep,
            ranks=ranks,
            arguments={},
            sources={buffer.name: (buffer.dtype, buffer.shape) for buffer in buffers},
            output=folder,
        )


CASES = (
    Case("qwen3", True, 2, 1),
    Case("qwen3", False, 4, 1, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    Case("qwen3_moe", True, 2, 1),
    Case("qwen3_moe", True, 2, 2),
    Case("qwen3_moe", False, 2, 2),
    Case("deepseek_v3", True, 2, 1),
    Case("deepseek_v3", True, 2, 2),
    Case("deepseek_v3", False, 2, 1, {"q_lora_rank": None}),
    Case("glm4_moe", True, 2, 2),
    Case("llama", True, 2, 1, {"attention_bias": True}),
)
