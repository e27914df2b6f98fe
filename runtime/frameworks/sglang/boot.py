"""Build real SGLang model classes, with or without a GPU, as one rank of several (SGLang 0.5.23).

SGLang's state is global: a process can be one rank, once. What a model holds can depend on where it
runs (on CUDA GLM-4-MoE takes its shared expert for one of the routed ones), so a model is built for
a GPU only where there is one.
"""

import copy
import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tranship.runtime.frameworks.tracing import stand_ins
from tranship.runtime.frameworks.tracing.fake_groups import join_fake_groups
from tranship.schema.manifest import Axis

STAND_INS = (
    "IPython",
    "aiohttp",
    "compressed_tensors",
    "cutlass",
    "deep_ep",
    "einops",
    "fastapi",
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
    "SGLANG_ONE_VISIBLE_DEVICE_PER_PROCESS": "1",
    "SGLANG_USE_MESSAGE_QUEUE_BROADCASTER": "0",
}
"""What SGLang reads from the environment to do without other processes, on the first GPU."""

CPU, CUDA = "cpu", "cuda"
"""What SGLang's argument `device` may be here."""

WITHOUT_A_GPU = {"SGLANG_USE_CPU_ENGINE": "1"}
"""What it reads to do without GPUs."""

CAPABILITY = (9, 0)
"""What a GPU that is not there answers to models that ask while arguments are resolved."""

MOVES_EXPERTS = ("init_expert_location", "enable_eplb", "ep_num_redundant_experts")
"""Arguments by which SGLang holds experts in other places, also while it serves."""

NEEDED = (
    "sglang.srt.server_args",
    "sglang.srt.runtime_context",
    "sglang.srt.distributed.parallel_state",
    "sglang.srt.layers.dp_attention",
    "sglang.srt.configs.model_config",
    "sglang.srt.configs.load_config",
    "sglang.srt.model_loader.loader",
    "sglang.srt.models.registry",
)
"""Modules that every rank uses; most of a rank's time would go into importing them."""


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


def device_of(arguments: Mapping[str, object]) -> str:
    """Return what an engine with these arguments runs on: by default a CPU, as a trace can."""
    return str(arguments.get("device", CPU))


def prepare(architecture: str, device: str = CPU) -> None:
    """Import what all ranks use, for a model class of this name.

    Only the modules that define it are imported with SGLang's registry: all would take seconds.
    """
    os.environ.update(ENVIRONMENT)
    if device == CPU:
        os.environ.update(WITHOUT_A_GPU)
    os.environ["SGLANG_DISABLED_MODEL_ARCHS"] = ",".join(sorted(_other_modules(architecture)))
    if importlib.util.find_spec("sgl_kernel") is None:
        # Modules look up operators when they are imported, which nothing calls.
        operators: Any = torch.ops
        operators.sgl_kernel = stand_ins.Inert("torch.ops.sgl_kernel")
    stand_ins.install(STAND_INS)
    if not torch.cuda.is_available():
        _stand_in_for_a_gpu()
    for name in NEEDED:
        importlib.import_module(name)


def _stand_in_for_a_gpu() -> None:
    def capability(device: object = None) -> tuple[int, int]:
        del device
        return CAPABILITY

    torch.cuda.get_device_capability = capability


def boot(folder: Path, place: Place, arguments: Mapping[str, object]) -> Any:
    """Make this process the rank `place` of an engine, and return SGLang's ModelConfig.

    Args:
        folder: Where the model's config.json is.
        place: The rank.
        arguments: Further arguments of SGLang's `ServerArgs`.

    Raises:
        ValueError: experts would lie where a trace does not see it, or there is no such device.
    """
    if moved := [name for name in MOVES_EXPERTS if arguments.get(name)]:
        raise ValueError(f"{moved[0]} places experts in a way that is not traced")
    device = device_of(arguments)
    _require(device)
    given = {"skip_tokenizer_init": True, **arguments, "device": device}
    args = _import("sglang.srt.server_args").ServerArgs(
        model_path=str(folder), tp_size=place.tp, ep_size=place.ep, **given
    )
    context = _import("sglang.srt.runtime_context")
    ranks = context.SpawnRanks(world_rank=place.rank, gpu_id=0)
    context.publish(args, role="scheduler", ranks=ranks)
    _join_groups(place)
    _import("sglang.srt.layers.dp_attention").initialize_dp_attention(args)
    # As managers/scheduler.py does; without it arguments about experts are ignored.
    _import("sglang.srt.layers.moe.utils").initialize_moe_config()
    _import("sglang.srt.layers.quantization.fp8_utils").initialize_fp8_gemm_config()
    config = _import("sglang.srt.configs.model_config").ModelConfig.from_server_args(args)
    return _with_names_of_a_cpu(config, place) if device == CPU else config


def _require(device: str) -> None:
    """Make sure that a model can be built for a device here.

    Raises:
        ValueError: it cannot.
    """
    if device not in (CPU, CUDA):
        raise ValueError(f"device {device!r} is neither {CPU} nor {CUDA}")
    if device == CUDA and not torch.cuda.is_available():
        raise ValueError(f"there is no GPU here, and device {CUDA} was asked for")


def _with_names_of_a_cpu(config: Any, place: Place) -> Any:
    """Add the fields that models read on a CPU only (model_executor/model_runner.py does).

    A CPU engine may pad heads and inner sizes, which no other does: nothing else is taken over.
    """
    load_config = _import("sglang.srt.configs.load_config").LoadConfig(load_format="dummy")
    adjust = _import("sglang.srt.configs.update_config").adjust_config_with_unaligned_cpu_tp
    on_cpu = adjust(copy.deepcopy(config), load_config, place.tp)
    for name in ("hf_config", "hf_text_config"):
        own: Any = getattr(config, name)
        other: Any = getattr(on_cpu, name)
        for key, value in other.__dict__.items():
            own.__dict__.setdefault(key, value)
    return config


def _import(name: str) -> Any:
    return importlib.import_module(name)


def _other_modules(architecture: str) -> set[str]:
    """List the modules of `sglang.srt.models` that do not define a class, without importing any."""
    found = importlib.util.find_spec("sglang")
    assert found is not None
    files = [
        file
        for folder in found.submodule_search_locations or ()
        for file in Path(folder, "srt", "models").glob("*.py")
    ]
    line = f"class {architecture}("
    other = {file.stem for file in files if line not in file.read_text(encoding="utf-8")}
    # Where nothing defines it the registry is to say so, with all that it knows.
    return other if len(other) < len(files) else set()


def _join_groups(place: Place) -> None:
    """Create SGLang's process groups with torch's fake backend, which has no other members."""
    join_fake_groups(place.rank, place.tp)
    state = _import("sglang.srt.distributed.parallel_state")
    _connect_with_nobody(state)
    state.init_distributed_environment(
        world_size=place.tp, rank=place.rank, local_rank=0, backend="fake"
    )
    state.initialize_model_parallel(backend="fake")


def _connect_with_nobody(state: Any) -> None:
    """Keep groups from opening ways of their own to other ranks, as they do on GPUs."""
    state.set_custom_all_reduce(False)
    initialize = state.GroupCoordinator.__init__

    def without_nccl(group: object, *arguments: object, **options: object) -> None:
        initialize(group, *arguments, **{**options, "use_pynccl": False})

    state.GroupCoordinator.__init__ = without_nccl


class _Elsewhere(TorchFunctionMode):
    """Makes tensors that are asked for on a GPU on another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == CUDA:
            kwargs = kwargs | {"device": self.device}
        return func(*args, **kwargs)


def build_model(model_config: Any, device: str) -> torch.nn.Module:
    """Build the model as SGLang's loader does before it loads weights, on "meta" or its device."""
    load_config = _import("sglang.srt.configs.load_config").LoadConfig(load_format="dummy")
    loader = _import("sglang.srt.model_loader.loader")
    quantization = loader._get_quantization_config(model_config, load_config)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(model_config.dtype)
    try:
        with torch.device(device), _Elsewhere(device):
            return loader._initialize_model(model_config, load_config, quantization)
    finally:
        torch.set_default_dtype(default_dtype)
