"""Trace one rank of a real SGLang engine that is given the checkpoint of an offline manifest."""

import functools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.sglang import boot, emit
from tests.sglang.configs import BLOCK
from tests.sglang.emit import Engine, declare
from tests.sglang.tracer import trace_load
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.live import live_tensors
from tranship.schema.codec import dump, load
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Framework, Manifest

SHARED_MODULES = {"deepseek_v3": {"deepseek_v2"}}
"""Modules of SGLang that hold models of another name."""

UNTOUCHED = {"k_scale": "no checkpoint has it", "v_scale": "no checkpoint has it"}
"""Parameters that SGLang makes for FP8 caches, and that neither checkpoint nor trainer knows."""


def meta_checkpoint(manifest: Manifest) -> dict[str, torch.Tensor]:
    """Every buffer of a checkpoint's manifest, on the meta device."""
    return {
        buffer.name: torch.empty(buffer.shape, dtype=torch_dtype(buffer.dtype), device="meta")
        for buffer in expand(manifest).buffers
    }


def main() -> None:
    """Take a request as JSON: config, checkpoint manifest, tp, ep, rank, arguments, output."""
    request: dict[str, Any] = json.loads(sys.argv[1])
    config = json.loads(Path(request["config"]).read_text())
    modules: Any = boot
    everything = modules._models()
    modules._models = lambda: everything - SHARED_MODULES.get(config["model_type"], set())
    emit.CONSTANTS.update(UNTOUCHED)
    place = boot.Place(request["tp"], request["ep"], request["rank"])
    if request["arguments"]:
        _with_arguments(request["arguments"])
    model_config = boot.boot(config, place)
    model = boot.build_model(model_config, "meta")
    loaded: Any = model
    loaded.post_load_weights = _derive_nothing
    checkpoint = meta_checkpoint(load(request["checkpoint"], Manifest).value)
    trace = trace_load(model, checkpoint)
    framework = Framework(name="sglang", version=version("sglang"))
    engine = Engine(framework, place.tp, place.axes(), place.rank)
    declared = declare(engine, live_tensors(model), trace, checkpoint, BLOCK)
    Path(request["output"]).write_bytes(dump(fold(declared)))


def _derive_nothing(**_: object) -> None:
    """Stand in for what makes other tensors of those that were loaded."""


def _with_arguments(arguments: dict[str, Any]) -> None:
    """Give SGLang's arguments further values; its class stays as it is."""
    modules: Any = boot
    import_module = modules._import

    def imported(name: str) -> Any:
        module = import_module(name)
        if name != "sglang.srt.server_args":
            return module
        return SimpleNamespace(ServerArgs=functools.partial(module.ServerArgs, **arguments))

    modules._import = imported


if __name__ == "__main__":
    main()
