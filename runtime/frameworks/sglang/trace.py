"""Trace what an SGLang engine's ranks hold.

python -m tranship.runtime.frameworks.sglang.trace REQUEST
"""

import sys
from collections.abc import Mapping
from typing import Any

from tranship.runtime.frameworks.sglang.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.tracing.declare import CONSTANTS
from tranship.runtime.frameworks.tracing.ranks import Code, main
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.manifest import Axis

UNTOUCHED: Mapping[str, str] = {
    **CONSTANTS,
    "k_scale": "a scale of the cache, which no checkpoint has",
    "v_scale": "a scale of the cache, which no checkpoint has",
}
"""Why no update changes a tensor, by the last part of its name (layers/radix_attention.py)."""


def build(request: TraceRequest, rank: int) -> Any:
    """Become a rank, and build its model on the meta device."""
    place = Place(request.tp, request.ep, rank)
    return build_model(boot(request.folder, place, request.arguments), "meta")


def _axes(request: TraceRequest) -> tuple[Axis, ...]:
    return Place(request.tp, request.ep, 0).axes()


def _options(request: TraceRequest) -> Mapping[str, int | bool | str]:
    return {"tp_size": request.tp, "ep_size": request.ep, "device": "cpu", **request.arguments}


SGLANG = Code(
    title="SGLang",
    package="sglang",
    prepare=prepare,
    build=build,
    axes=_axes,
    options=_options,
    constants=UNTOUCHED,
    derives="post_load_weights",
)

if __name__ == "__main__":
    main(SGLANG, sys.argv[1])
