"""Build real SGLang 0.5.23 model classes without a GPU, as one rank of several.

SGLang's state is global: a process can be one rank, once.
"""

import argparse
import importlib
import importlib.util
import os
import pkgutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.sglang import stubs
from tests.sglang.configs import CONFIGS, Config, write_config
from tranship.schema.manifest import Axis

STAND_INS = (
    "IPython",
    "aiohttp",
    "compressed_tensors",
    "einops",
    "gguf",
    "openai",
    "orjson",
    "partial_json_parser",
    "pybase64",
    "requests",
    "sentencepiece",
    "sgl_kernel",
    "starlette",
    "torchvision",
    "tvm_ffi",
    "zmq",
)
"""Packages that SGLang imports at the top of its modules, and that building a model never uses."""

ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_USE_MESSAGE_QUEUE_BROADCASTER": "0",
}
"""What SGLang reads from the environment to do without GPUs and without other processes."""


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of `tp`; experts are spread over `ep` groups of ranks."""

    tp: int
    ep: int
    rank: int

    def axes(self) -> tuple[Axis, ...]:
        """Mesh axes as SGLang 0.5.23 numbers ranks (srt/distributed/parallel_state.py).

        The `tp // ep` ranks that share experts are neighbours.
        """
        width = self.tp // self.ep
        axes = [Axis(name="tp", size=self.tp, stride=1)]
        if self.ep > 1:
            axes.append(Axis(name="ep", size=self.ep, stride=width))
            if width > 1:
                axes.append(Axis(name="moe_tp", size=width, stride=1))
        return tuple(axes)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that say which rank of which engine a script is."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("config", choices=sorted(CONFIGS), help="which configuration")
    result.add_argument("--tp", type=int, default=1, help="number of ranks")
    result.add_argument("--ep", type=int, default=1, help="number of groups of experts")
    result.add_argument("--rank", type=int, default=0, help="which rank")
    return result


def boot(config: Config, place: Place) -> Any:
    """Make this process the rank `place` of an engine, and return SGLang's ModelConfig.

    Only the module of the configuration's model is imported; all of them would take seconds.
    """
    os.environ.update(ENVIRONMENT)
    os.environ["SGLANG_DISABLED_MODEL_ARCHS"] = ",".join(_models() - {config["model_type"]})
    stubs.install(STAND_INS)
    with tempfile.TemporaryDirectory() as folder:
        write_config(config, Path(folder))
        args = _import("sglang.srt.server_args").ServerArgs(
            model_path=folder,
            tp_size=place.tp,
            ep_size=place.ep,
            device="cpu",
            skip_tokenizer_init=True,
        )
        context = _import("sglang.srt.runtime_context")
        ranks = context.SpawnRanks(world_rank=place.rank, gpu_id=0)
        context.publish(args, role="scheduler", ranks=ranks)
        _join_groups(place)
        _import("sglang.srt.layers.dp_attention").initialize_dp_attention(args)
        return _import("sglang.srt.configs.model_config").ModelConfig.from_server_args(args)


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _models() -> set[str]:
    """List the modules of `sglang.srt.models` without importing any."""
    found = importlib.util.find_spec("sglang")
    assert found is not None
    folders = [f"{folder}/srt/models" for folder in found.submodule_search_locations or ()]
    return {module.name for module in pkgutil.iter_modules(folders)}


def _join_groups(place: Place) -> None:
    """Create SGLang's process groups with torch's fake backend, which has no other members."""
    distributed = _import("torch.distributed")
    _import("torch.testing._internal.distributed.fake_pg")  # registers the backend
    store = distributed.HashStore()
    distributed.init_process_group("fake", store=store, rank=place.rank, world_size=place.tp)
    new_group = distributed.new_group

    def new_fake_group(ranks: list[int], **options: Any) -> Any:
        return new_group(ranks, backend="fake", group_desc=options["group_desc"])

    distributed.new_group = new_fake_group
    state = _import("sglang.srt.distributed.parallel_state")
    state.set_custom_all_reduce(False)
    state.init_distributed_environment(
        world_size=place.tp, rank=place.rank, local_rank=0, backend="fake"
    )
    state.initialize_model_parallel(backend="fake")


def build_model(model_config: Any, device: str) -> torch.nn.Module:
    """Build the model as SGLang's loader does before it loads weights, on "meta" or "cpu"."""
    load_config = _import("sglang.srt.configs.load_config").LoadConfig(load_format="dummy")
    loader = _import("sglang.srt.model_loader.loader")
    quantization = loader._get_quantization_config(model_config, load_config)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(model_config.dtype)
    try:
        with torch.device(device):
            return loader._initialize_model(model_config, load_config, quantization)
    finally:
        torch.set_default_dtype(default_dtype)
