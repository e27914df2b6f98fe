"""Build real vLLM model classes without a GPU, as one rank of several (vLLM 0.33.0).

Neither vLLM's compiled parts nor its packages of kernels are needed. vLLM's state is global: a
process can be one rank, once.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tranship.runtime.frameworks.tracing import stand_ins
from tranship.runtime.frameworks.tracing.fake_groups import join_fake_groups
from tranship.schema.manifest import Axis

STAND_INS = (
    "aiohttp",
    "cbor2",
    "compressed_tensors",
    "cpuinfo",
    "einops",
    "fastapi",
    "llguidance",
    "openai",
    "openai_harmony",
    "partial_json_parser",
    "prometheus_client",
    "pybase64",
    "requests",
    "urllib3",
    "uvloop",
    "xgrammar",
    "zmq",
)
"""Packages that vLLM imports at the top of its modules, and that building a model never uses."""

ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_PLUGINS": "",
}
"""What vLLM reads from the environment to take its CPU platform, and to leave the network alone."""

BACKENDS = frozenset({"linear_backend", "moe_backend"})
"""Arguments that choose kernels, few of which run on a CPU.

They decide nothing of what is loaded, but for experts whose shards are no whole blocks.
"""

NEEDED = (
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.distributed.parallel_state",
    "vllm.distributed.device_communicators.shm_broadcast",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.model_loader.utils",
    "vllm.model_executor.models",
    "vllm.utils.torch_utils",
    "torch.testing._internal.distributed.fake_pg",
)
"""Modules that every rank uses; most of a rank's time would go into importing them."""


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of `tp`; with `ep` experts are spread over all of them."""

    tp: int
    ep: bool
    rank: int

    def axes(self) -> tuple[Axis, ...]:
        """Mesh axes as vLLM 0.33.0 numbers ranks (distributed/parallel_state.py)."""
        names = ("tp", "ep") if self.ep else ("tp",)
        return tuple(Axis(name=name, size=self.tp, stride=1) for name in names)


def prepare(architecture: str) -> None:
    """Import what all ranks use, for a model class of this name."""
    os.environ.update(ENVIRONMENT)
    stand_ins.install(STAND_INS)
    for name in NEEDED:
        importlib.import_module(name)
    _pass_for_capable()
    register(architecture)


def register(architecture: str) -> None:
    """Import the class of this name, and tell vLLM that it is imported.

    Else vLLM would look at it in a process of its own, so as not to touch a GPU, and that process
    has no stand-ins.
    """
    registry = _import("vllm.model_executor.models").ModelRegistry
    # Where nothing defines it vLLM is to say so.
    if known := registry.models.get(architecture):
        registry.register_model(architecture, known.load_model_cls())


def _pass_for_capable() -> None:
    """Let vLLM choose FP8 kernels, which are never run: they ask for AMX and compiled parts.

    vLLM registers the parameters before it asks (quantization/fp8.py), and no kernel takes part
    in loading; only `process_weights_after_loading` would be theirs.
    """
    _import("torch.cpu")._is_amx_tile_supported = _yes
    _import("vllm._custom_ops")._supports_cpu_fp8_w8a16 = True


def _yes() -> bool:
    return True


def boot(folder: Path, place: Place, arguments: Mapping[str, object]) -> Any:
    """Make this process the rank `place` of an engine, and return vLLM's VllmConfig.

    Args:
        folder: Where the model's config.json is.
        place: The rank.
        arguments: Further arguments of vLLM's `EngineArgs`. Those of `BACKENDS` are left out.
    """
    chosen = {name: value for name, value in arguments.items() if name not in BACKENDS}
    given = {"skip_tokenizer_init": True, "enforce_eager": True, **chosen}
    args = _import("vllm.engine.arg_utils").EngineArgs(
        model=str(folder),
        tensor_parallel_size=place.tp,
        enable_expert_parallel=place.ep,
        load_format="dummy",
        **given,
    )
    config = args.create_engine_config()
    if config.parallel_config.world_size_across_dp != place.tp:
        raise ValueError("tensor parallelism alone is traced; other axes of ranks are not")
    with _import("vllm.config").set_current_vllm_config(config):
        _join_groups(place)
    return config


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _join_groups(place: Place) -> None:
    """Create vLLM's process groups with torch's fake backend, which has no other members."""
    join_fake_groups(place.rank, place.tp)
    state = _import("vllm.distributed.parallel_state")
    # Both would wait for the other ranks.
    queues = _import("vllm.distributed.device_communicators.shm_broadcast").MessageQueue
    queues.create_from_process_group = _no_queue
    state._node_count = _one_node
    state.init_distributed_environment(place.tp, place.rank, local_rank=0, backend="fake")
    state.ensure_model_parallel_initialized(place.tp, 1, backend="fake")


def _no_queue(*_: object, **__: object) -> None:
    return None


def _one_node(_: object) -> int:
    return 1


def build_model(vllm_config: Any, device: str) -> torch.nn.Module:
    """Build the model as vLLM's loader does before it loads weights, on "meta" or "cpu"."""
    default_dtype = _import("vllm.utils.torch_utils").set_default_torch_dtype
    initialize = _import("vllm.model_executor.model_loader.utils").initialize_model
    with default_dtype(vllm_config.model_config.dtype), torch.device(device):
        return initialize(vllm_config, model_config=vllm_config.model_config)
