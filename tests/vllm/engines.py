"""Trace every rank of every case, and load a random checkpoint into it with vLLM's own code.

    python tests/vllm/engines.py FOLDER

vLLM is imported once. Each rank is traced in one fork of that process and loaded in another: vLLM
builds one model per process. A rank leaves `RANK.json`, an `Answer`, and `RANK.safetensors`, what
it holds after loading. The names of what loading has left alone are in `RANK.untouched`, and
`RANK.derived` says what latent attention then makes of its weights.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from tests.models.configs import CONFIGS
from tests.sglang.configs import random_values
from tests.sglang.load import read_tensors, write_tensors
from tests.sglang.replay import UNWRITTEN, bits
from tests.vllm.cases import CASES, Case
from tranship.runtime.dtypes import schema_dtype
from tranship.runtime.frameworks.tracing.forks import run_forks
from tranship.runtime.frameworks.tracing.ranks import answer
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.runtime.frameworks.vllm.boot import Place, boot, build_model, prepare, register
from tranship.runtime.frameworks.vllm.trace import VLLM
from tranship.runtime.live import live_tensors
from tranship.schema.manifest import Kind

CHECKPOINT = "checkpoint.st"
Memory = tuple[str, str, list[int], list[int], str]


def trace(request: TraceRequest, rank: int) -> None:
    """Trace a rank."""
    text = answer(VLLM, request, rank).model_dump_json()
    (request.output / f"{rank}.json").write_text(text)


def load(request: TraceRequest, rank: int) -> None:
    """Load the checkpoint into a rank on the CPU, all of whose parameters hold NaNs before."""
    config = boot(request.folder, Place(request.tp, request.ep > 1, rank), {})
    model: Any = build_model(config, "cpu")
    held = live_tensors(model)
    for one in held.values():
        if one.kind is Kind.PARAMETER:
            bits(one.tensor).fill_(UNWRITTEN)
    before = {name: one.tensor.clone() for name, one in held.items()}
    model.load_weights(iter(read_tensors(request.folder / CHECKPOINT).items()))
    after = {name: one.tensor.clone() for name, one in live_tensors(model).items()}
    write_tensors(after, request.output / f"{rank}.safetensors")
    same = [name for name in before if torch.equal(bits(before[name]), bits(after[name]))]
    (request.output / f"{rank}.untouched").write_text("\n".join(same))
    (request.output / f"{rank}.derived").write_text(json.dumps(derive(model)))


def derive(model: Any) -> dict[str, Memory]:
    """Run what latent attention does after loading, as where no kernel packs its weights.

    Returns:
        Of every new tensor its kind, dtype, shape and strides, and the first tensor that has the
        same memory, or "".
    """
    before = live_tensors(model)
    backend: Any = importlib.import_module("vllm.v1.attention.backend")
    nothing = backend.AttentionImplBase.process_weights_after_loading
    for module in model.modules():
        if hasattr(module, "is_amx_bmm_enabled"):
            module.is_amx_bmm_enabled = False
            module.impl.process_weights_after_loading = MethodType(nothing, module.impl)
            module.process_weights_after_loading(torch.bfloat16)
    owners = {
        one.tensor.untyped_storage().data_ptr(): name for name, one in reversed(before.items())
    }
    found: dict[str, Memory] = {}
    for name, one in live_tensors(model).items():
        if name not in before:
            owner = owners.get(one.tensor.untyped_storage().data_ptr(), "")
            layout = [*one.tensor.shape], [*one.tensor.stride()]
            found[name] = one.kind, schema_dtype(one.tensor.dtype), *layout, owner
    return found


def jobs(folder: Path) -> Iterator[Callable[[], None]]:
    """Yield what is to be done, with the cases' files written."""
    for seed, case in enumerate(CASES):
        own = folder / case.title
        own.mkdir()
        case.write(own)
        request = case.request(own, tuple(range(case.tp)))
        write_tensors(random_values(on_meta(request.sources), seed), own / CHECKPOINT)
        for rank in request.ranks:
            yield partial(trace, request, rank)
            yield partial(load, request, rank)


def architectures(cases: tuple[Case, ...]) -> set[str]:
    """Return the model classes of the cases."""
    return {CONFIGS[case.model]["architectures"][0] for case in cases}


def main(folder: Path) -> None:
    """Run all jobs, two at once."""
    first, *others = sorted(architectures(CASES))
    prepare(first)
    for other in others:
        register(other)
    torch.set_num_threads(1)
    sys.exit(run_forks(jobs(folder), 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
