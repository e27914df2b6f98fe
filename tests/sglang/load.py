"""Load a checkpoint into one rank of an SGLang engine with SGLang's code; save what it holds."""

import importlib
from pathlib import Path
from typing import Any

import torch

from tests.sglang.configs import CONFIGS
from tests.sglang.replay import UNWRITTEN, bits
from tests.sglang.trace import become, parser
from tranship.runtime.frameworks.sglang.boot import Place, build_model
from tranship.runtime.frameworks.sglang.trace import UNTOUCHED
from tranship.runtime.live import live_tensors
from tranship.schema.manifest import Kind


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file."""
    return importlib.import_module("safetensors.torch").load_file(path)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file."""
    importlib.import_module("safetensors.torch").save_file(tensors, path)


def loaded_model(
    model_config: Any, checkpoint: dict[str, torch.Tensor], device: str = "cpu"
) -> Any:
    """Build the booted rank's model, and let its own `load_weights` load a checkpoint.

    What SGLang itself has set, and no checkpoint has, stays as it is.
    """
    model: Any = build_model(model_config, device)
    for name, held in live_tensors(model).items():
        if held.kind is Kind.PARAMETER and name.rpartition(".")[2] not in UNTOUCHED:
            bits(held.tensor).fill_(UNWRITTEN)
    model.load_weights(iter(checkpoint.items()))
    return model


def load_rank(model_config: Any, checkpoint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return every tensor of the booted rank, under all its names, after its own `load_weights`."""
    held = live_tensors(loaded_model(model_config, checkpoint))
    return {n: h.tensor.clone(memory_format=torch.contiguous_format) for n, h in held.items()}


def write_loaded(model_config: Any, checkpoint: Path, output: Path) -> None:
    """Load one safetensors file and write what the booted rank then holds into another."""
    write_tensors(load_rank(model_config, read_tensors(checkpoint)), output)


def main() -> None:
    """Run as a script."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("checkpoint", type=Path, help="the safetensors file to load")
    arguments.add_argument("output", type=Path, help="the safetensors file to write")
    given = arguments.parse_args()
    model_config = become(CONFIGS[given.config], Place(given.tp, given.ep, given.rank))
    write_loaded(model_config, given.checkpoint, given.output)


if __name__ == "__main__":
    main()
