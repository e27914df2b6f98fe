"""Trace what an engine's ranks hold, in a process that can become every one of them.

The state of an engine is global, so every rank is a process. Importing an engine takes seconds, and
a rank a second or two: ranks are forked from the one process that has imported it, where they can
be.
"""

import json
import sys
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tranship.runtime.bind import location
from tranship.runtime.frameworks.tracing.config import block_of, method_of
from tranship.runtime.frameworks.tracing.declare import CONSTANTS, Engine, declare
from tranship.runtime.frameworks.tracing.deepgemm import as_deepgemm_reads
from tranship.runtime.frameworks.tracing.derived import (
    Derivation,
    trace_derived,
    without_method,
)
from tranship.runtime.frameworks.tracing.extrapolate import find_pattern, sample
from tranship.runtime.frameworks.tracing.forks import run_commands, run_forks
from tranship.runtime.frameworks.tracing.request import (
    Answer,
    TraceRequest,
    read_answer,
    refusal,
)
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.runtime.frameworks.tracing.tracer import TraceError, trace_load
from tranship.runtime.live import LiveTensor, live_tensors
from tranship.schema.codec import dump, write_atomically
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Axis, Framework, Manifest, Side
from tranship.schema.records import Declaration


@dataclass(frozen=True, slots=True)
class Code:
    """An engine's own code, and what is to be known to run it.

    Attributes:
        title: what people call the engine.
        package: the package that holds it, and the framework's name in a manifest.
        module: the module that calls `main` with this.
        prepare: imports what all ranks use.
        build: makes this process a rank, for good, and builds its model on the meta device.
        axes: mesh axes, as the engine numbers ranks.
        options: all arguments that decide what is held, under the engine's names.
        constants: why no update changes a tensor, by the last part of its name.
        passing: last parts of names of tensors that serving replaces or removes; unless a
            checkpoint has values for them they are not declared.
        derivations: returns what makes a model's other tensors of those that were loaded.
        apart: a method of models that `load_weights` calls, and that is one of these.
        layouts: returns the layouts, by name, of tensors that do not stay as they were loaded.
        requantized: names the codes whose scales are packed where DeepGEMM reads packed ones.
        forks: whether ranks can be forked from a process that is prepared.
    """

    title: str
    package: str
    module: str
    prepare: Callable[[TraceRequest], None]
    build: Callable[[TraceRequest, int], Any]
    axes: Callable[[TraceRequest], tuple[Axis, ...]]
    options: Callable[[TraceRequest], Mapping[str, int | bool | str]]
    constants: Mapping[str, str] = field(default_factory=lambda: CONSTANTS)
    passing: frozenset[str] = frozenset()
    derivations: Callable[[Any], Sequence[Derivation]] = lambda model: ()
    apart: str = ""
    layouts: Callable[[Any], Mapping[str, str]] = lambda model: {}
    requantized: Callable[[Any, TraceRequest], Container[str]] = lambda model, request: ()
    forks: Callable[[TraceRequest], bool] = lambda request: True


def trace_rank(code: Code, request: TraceRequest, rank: int) -> Declaration:
    """Declare a rank, which this process becomes for good.

    Raises:
        DiagnosticError: as `declare` and `as_deepgemm_reads`; TS855, weights are loaded in a way
            that copies of boxes cannot express; TS856, the engine does not build the model.
    """
    try:
        model: Any = code.build(request, rank)
    except Exception as error:
        raise _refused(f"{code.title} does not build the model", error, rank) from error
    return trace_model(code, model, request, rank)


def trace_model(code: Code, model: Any, request: TraceRequest, rank: int) -> Declaration:
    """Declare the rank whose model was built on the meta device.

    Raises:
        DiagnosticError: as `trace_rank`, but that TS856 is about loading.
    """
    checkpoint = on_meta(request.sources)
    try:
        with without_method(model, code.apart):
            trace = trace_load(model, checkpoint)
        written = {write.buffer for write in trace.writes}
        derived = trace_derived(model, code.derivations(model), written)
    except TraceError as error:
        where = location(Side.RECEIVER, rank)
        raise DiagnosticError([Diagnostic("TS855", f"{error}", where)]) from error
    except Exception as error:
        raise _refused(f"{code.title} does not load the checkpoint", error, rank) from error
    engine = Engine(
        framework=Framework(
            name=code.package, version=version(code.package), options=dict(code.options(request))
        ),
        world_size=request.tp,
        axes=code.axes(request),
        rank=rank,
        method=method_of(request.folder),
        block=block_of(request.folder),
        constants=code.constants,
        derived=derived,
        layouts=code.layouts(model),
    )
    live = lasting_tensors(model, code.passing, written)
    declared = declare(engine, live, trace, checkpoint)
    if request.deepgemm is None:
        return declared
    return as_deepgemm_reads(declared, request.deepgemm, code.requantized(model, request))


def _refused(what: str, error: Exception, rank: int) -> DiagnosticError:
    traceback.print_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    origin = f"{Path(last.filename).name}:{last.lineno}, {last.line}"
    message = f"{what}: {type(error).__name__}: {error} ({origin})"
    return DiagnosticError([Diagnostic("TS856", message, location(Side.RECEIVER, rank))])


def lasting_tensors(
    model: Any, passing: frozenset[str], kept: Container[str]
) -> dict[str, LiveTensor]:
    """Collect a model's tensors, without those that are only passing, unless they are in `kept`."""
    return {
        name: held
        for name, held in live_tensors(model).items()
        if name in kept or name.rpartition(".")[2] not in passing
    }


def answer(code: Code, request: TraceRequest, rank: int) -> Answer:
    """Trace a rank, and say what became of it."""
    try:
        return Answer(manifest=dump(fold(trace_rank(code, request, rank))).decode())
    except DiagnosticError as error:
        return refusal(error)


def main(code: Code, path: str, rank: str | None = None) -> None:
    """Trace the ranks of a request, or be one of them."""
    request = TraceRequest.model_validate_json(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    if rank is not None:
        code.prepare(request)
        _be(code, request, int(rank))
        return
    trace = _traced_by_forks(code, request) if code.forks(request) else _traced_by(code, path)
    ranks = request.ranks or sample(code.axes(request), request.tp)
    trace(ranks)
    if not request.ranks and not _is_enough(request, ranks):
        trace(tuple(rank for rank in range(request.tp) if rank not in ranks))
        ranks = tuple(range(request.tp))
    write_atomically(request.list_of_ranks, json.dumps(ranks).encode())


def _is_enough(request: TraceRequest, ranks: Sequence[int]) -> bool:
    """Whether nothing more needs to be traced: what all hold is told, or something has failed."""
    if len(ranks) == request.tp:
        return True
    traced: dict[int, Declaration] = {}
    for rank in ranks:
        path = request.answer_of(rank)
        manifest = read_answer(path).manifest if path.exists() else None
        if manifest is None:
            return True
        traced[rank] = expand(Manifest.model_validate_json(manifest))
    return find_pattern(traced) is not None


def _traced_by_forks(code: Code, request: TraceRequest) -> Callable[[Sequence[int]], object]:
    """Return what lets forks of this process be ranks; of one that fails there is no answer."""
    code.prepare(request)
    return lambda ranks: run_forks(partial(_be, code, request, rank) for rank in ranks)


def _traced_by(code: Code, path: str) -> Callable[[Sequence[int]], object]:
    """Return what lets other processes be ranks."""
    command = [sys.executable, "-m", code.module, path]
    return lambda ranks: run_commands([*command, f"{rank}"] for rank in ranks)


def _be(code: Code, request: TraceRequest, rank: int) -> None:
    """Be a rank, and write down what became of it."""
    text = answer(code, request, rank).model_dump_json()
    write_atomically(request.answer_of(rank), text.encode())
