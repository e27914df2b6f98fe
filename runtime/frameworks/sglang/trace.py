"""Trace what an SGLang engine's ranks hold.

python -m tranship.runtime.frameworks.sglang.trace REQUEST [RANK]
"""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from tranship.runtime.frameworks.sglang.boot import (
    CPU,
    Place,
    boot,
    build_model,
    device_of,
    prepare,
)
from tranship.runtime.frameworks.sglang.layers import find_layouts, find_requantized, on_blackwell
from tranship.runtime.frameworks.sglang.recipes import POST_LOAD
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.declare import CONSTANTS
from tranship.runtime.frameworks.tracing.deepgemm import PACKED
from tranship.runtime.frameworks.tracing.derived import method_of_model
from tranship.runtime.frameworks.tracing.ranks import Code, main
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.manifest import Axis

UNTOUCHED: Mapping[str, str] = {
    **CONSTANTS,
    "k_scale": "a scale of the cache, which no checkpoint has",
    "v_scale": "a scale of the cache, which no checkpoint has",
}
"""Why no update changes a tensor, by the last part of its name (layers/radix_attention.py)."""


def _prepare(request: TraceRequest) -> None:
    prepare(architecture_of(request.folder), device_of(request.arguments))


def build(request: TraceRequest, rank: int) -> Any:
    """Become a rank, and build its model on the meta device."""
    place = Place(request.tp, request.ep, rank)
    with on_blackwell() if request.deepgemm == PACKED else nullcontext():
        return build_model(boot(request.folder, place, request.arguments), "meta")


def _axes(request: TraceRequest) -> tuple[Axis, ...]:
    return Place(request.tp, request.ep, 0).axes()


def _options(request: TraceRequest) -> Mapping[str, int | bool | str]:
    device = device_of(request.arguments)
    return {"tp_size": request.tp, "ep_size": request.ep, **request.arguments, "device": device}


def _forks(request: TraceRequest) -> bool:
    # Imports ask the GPU for its name, and CUDA does not survive a fork.
    return device_of(request.arguments) == CPU


SGLANG = Code(
    title="SGLang",
    package="sglang",
    module="tranship.runtime.frameworks.sglang.trace",
    prepare=_prepare,
    build=build,
    axes=_axes,
    options=_options,
    constants=UNTOUCHED,
    derivations=method_of_model(POST_LOAD),
    apart=POST_LOAD,
    layouts=find_layouts,
    requantized=lambda model, request: find_requantized(model),
    forks=_forks,
)

if __name__ == "__main__":
    main(SGLANG, *sys.argv[1:])
