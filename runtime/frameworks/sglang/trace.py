"""Trace what an SGLang engine's ranks hold, in a process that can become every one of them.

    python -m tranship.runtime.frameworks.sglang.trace REQUEST

SGLang's state is global, so every rank is a process. Importing SGLang takes ten seconds, and a rank
a second or two: ranks are forked from the one process that has imported it.
"""

import json
import os
import sys
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field

from tranship.runtime.bind import location
from tranship.runtime.frameworks.sglang.boot import (
    Place,
    architecture_of,
    boot,
    build_model,
    prepare,
)
from tranship.runtime.frameworks.tracing.declare import CONSTANTS, Engine, declare
from tranship.runtime.frameworks.tracing.derived import trace_derived
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.runtime.frameworks.tracing.tracer import TraceError, trace_load
from tranship.runtime.live import live_tensors
from tranship.schema.codec import dump, write_atomically
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.dtypes import DType
from tranship.schema.fold import fold
from tranship.schema.manifest import Framework, Frozen, Side
from tranship.schema.records import Declaration, Ints, RoleRecord

UNTOUCHED: Mapping[str, str] = {
    **CONSTANTS,
    "k_scale": "a scale of the cache, which no checkpoint has",
    "v_scale": "a scale of the cache, which no checkpoint has",
}
"""Why no update changes a tensor, by the last part of its name (layers/radix_attention.py)."""


class TraceRequest(Frozen):
    """What to trace.

    Attributes:
        folder: where the model's config.json is.
        tp, ep: ranks, and groups of them that experts are spread over.
        ranks: which ranks to trace.
        arguments: further arguments of SGLang's `ServerArgs`.
        sources: dtype and shape of every tensor of the checkpoint.
        output: folder for `RANK.json`, a manifest or findings.
    """

    folder: Path
    tp: int = Field(ge=1)
    ep: int = Field(ge=1)
    ranks: tuple[int, ...]
    arguments: dict[str, int | bool | str]
    sources: dict[str, tuple[DType, tuple[int, ...]]]
    output: Path

    @property
    def options(self) -> dict[str, int | bool | str]:
        """All arguments that decide what is held, under SGLang's names."""
        return {"tp_size": self.tp, "ep_size": self.ep, "device": "cpu", **self.arguments}


class Told(Frozen):
    """A finding on its way to the process that asked."""

    code: str
    message: str
    file: str
    help: str | None = None


class Answer(Frozen):
    """What became of a rank: a manifest, or why there is none."""

    manifest: str | None = None
    findings: tuple[Told, ...] = ()


def trace_rank(request: TraceRequest, rank: int) -> Declaration:
    """Declare a rank, which this process becomes for good.

    Raises:
        DiagnosticError: as `declare`; TS855, weights are loaded in a way that copies of boxes
            cannot express; TS856, the engine does not build the model.
    """
    place = Place(request.tp, request.ep, rank)
    where = location(Side.RECEIVER, rank)
    try:
        model: Any = build_model(boot(request.folder, place, request.arguments), "meta")
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        origin = f"{Path(last.filename).name}:{last.lineno}, {last.line}"
        message = f"SGLang does not build the model: {type(error).__name__}: {error} ({origin})"
        raise DiagnosticError([Diagnostic("TS856", message, where)]) from error
    return trace_model(model, request, place)


def trace_model(model: Any, request: TraceRequest, place: Place) -> Declaration:
    """Declare the rank whose model was built on the meta device.

    Raises:
        DiagnosticError: as `trace_rank`, but TS856.
    """
    checkpoint = on_meta(request.sources)
    try:
        with _without_deriving(model):
            trace = trace_load(model, checkpoint)
        derived = _derived(model)
    except TraceError as error:
        where = location(Side.RECEIVER, place.rank)
        raise DiagnosticError([Diagnostic("TS855", f"{error}", where)]) from error
    engine = Engine(
        framework=Framework(name="sglang", version=version("sglang"), options=request.options),
        world_size=place.tp,
        axes=place.axes(),
        rank=place.rank,
        method=method_of(request.folder),
        block=block_of(request.folder),
        constants=UNTOUCHED,
        derived=derived,
    )
    return declare(engine, live_tensors(model), trace, checkpoint)


_DERIVES = "post_load_weights"
"""The method of a model that makes other tensors of those that were loaded; most have none."""


@contextmanager
def _without_deriving(model: Any) -> Generator[None]:
    """Keep `load_weights` from calling it."""
    if not hasattr(model, _DERIVES):
        yield
        return
    setattr(model, _DERIVES, _derive_nothing)
    try:
        yield
    finally:
        delattr(model, _DERIVES)


def _derive_nothing(*_: object, **__: object) -> None:
    """Stand in for what makes other tensors of those that were loaded."""


def _derived(model: Any) -> Mapping[str, RoleRecord]:
    method = getattr(model, _DERIVES, None)
    return {} if method is None else trace_derived(model, method.__qualname__, method)


def block_of(folder: Path) -> Ints | None:
    """Return the rows and columns that share a scale, as config.json has them, if any do."""
    block = cast("list[int] | None", _quantization(folder).get("weight_block_size"))
    return tuple(block) if block else None


def method_of(folder: Path) -> str | None:
    """Return the name of the quantization by blocks that config.json asks for, if it does."""
    block, power_of_two = block_of(folder), _quantization(folder).get("scale_fmt") == "ue8m0"
    if block is None:
        return None
    sizes = "x".join(map(str, dict.fromkeys(block)))
    return f"fp8-block{sizes}{'-ue8m0' if power_of_two else ''}"


def _quantization(folder: Path) -> Mapping[str, object]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("quantization_config") or {}


def answer(request: TraceRequest, rank: int) -> Answer:
    """Trace a rank, and say what became of it."""
    try:
        return Answer(manifest=dump(fold(trace_rank(request, rank))).decode())
    except DiagnosticError as error:
        return Answer(findings=tuple(_told(error)))


def _told(error: DiagnosticError) -> Iterator[Told]:
    for found in error.diagnostics:
        file = found.at.file if found.at else ""
        yield Told(code=found.code, message=found.message, file=file, help=found.help)


def main(path: str) -> None:
    """Trace all ranks of a request, as many at once as there are processors."""
    request = TraceRequest.model_validate_json(Path(path).read_text(encoding="utf-8"))
    prepare(architecture_of(request.folder))
    torch.set_num_threads(1)
    running = 0
    for rank in request.ranks:
        if running == (os.cpu_count() or 1):
            os.wait()
            running -= 1
        if os.fork() == 0:
            _be(request, rank)
        running += 1
    for _ in range(running):
        os.wait()


def _be(request: TraceRequest, rank: int) -> None:
    """Be a rank, and end the process."""
    status = 1
    try:
        text = answer(request, rank).model_dump_json()
        write_atomically(request.output / f"{rank}.json", text.encode())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Neither the parent's cleanup nor its buffers are this process's.
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
