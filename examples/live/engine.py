"""One rank of an SGLang engine, without the server around it.

    python -m examples.live.engine RANK FOLDER PORT

The model is SGLang's, built by its loader, and it is updated by SGLang's `WeightUpdater` with
tranship's loader, as in a server that was launched with `--custom-weight-loader`. What is missing
is the scheduler, which needs a GPU: orders are read from the store and not from HTTP.
"""

import base64
import importlib
from typing import Any

import torch
from torch import nn

from examples.live.check import raw, verdict
from examples.live.checkpoint import read_checkpoint
from examples.live.orders import CHECK, END, UPDATE, next_order
from examples.live.place import WORLD, Place, enter
from tranship.runtime.frameworks.sglang.boot import Place as EnginePlace
from tranship.runtime.frameworks.sglang.boot import boot, build_model, prepare
from tranship.runtime.frameworks.sglang.control import LOADER

UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater"


def main() -> None:
    """Build the model, and do what is ordered until the end."""
    place = enter("engine")
    prepare("Qwen3MoeForCausalLM")
    config = boot(place.folder, EnginePlace(WORLD.receivers, 1, place.rank), {})
    model = unwritten(config)
    updater = weight_updater(model, config, place.rank)
    number, kind = 0, ""
    while kind != END:
        kind, text = next_order(place.store, number)
        if kind == UPDATE:
            update(updater, text)
        elif kind == CHECK:
            check(place, model, config, text)
        place.tell(f"done-{number}")
        number += 1


def unwritten(config: Any) -> nn.Module:
    """Build a model, and set all bits of its parameters: NaN wherever nothing is written."""
    model = build_model(config, "cpu")
    for parameter in model.parameters():
        raw(parameter).fill_(0xFF)
    return model


def weight_updater(model: nn.Module, config: Any, rank: int) -> Any:
    """Return what SGLang's model runner updates its model with."""
    return importlib.import_module(UPDATER).WeightUpdater(
        tp_rank=rank,
        device="cpu",
        gpu_id=0,
        model_config=config,
        custom_weight_loaders=[LOADER],
        get_model=lambda: model,
        update_model_fields=None,
        recapture_cuda_graph=None,
        get_model_runner=None,
    )


def update(updater: Any, text: str) -> None:
    """Hand an order to the loader, as SGLang's worker does."""
    utils: Any = importlib.import_module("sglang.srt.utils")
    named_tensors = utils.MultiprocessingSerializer.deserialize(base64.b64decode(text))
    with torch.no_grad():
        updated, message = updater.update_weights_from_tensor(named_tensors, load_format=LOADER)
    assert updated, message


def check(place: Place, model: nn.Module, config: Any, name: str) -> None:
    """Compare with a second model, which loads a checkpoint by the engine's own `load_weights`."""
    wanted: Any = unwritten(config)
    wanted.load_weights(iter(read_checkpoint(place.folder / name).items()))
    equal, text = verdict(model, wanted)
    place.tell(name, equal=equal, text=text)


if __name__ == "__main__":
    main()
