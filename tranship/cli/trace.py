"""`tranship trace`: declare what an engine holds, by running its own loading code."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import typer
from pydantic import BaseModel

from tranship.cli.diff import answer as difference
from tranship.cli.layout import GOOD, count, flow
from tranship.cli.load import (
    check_document,
    format_of,
    raise_errors,
    refuse_inputs,
    unwritten,
)
from tranship.cli.output import Answer, answer_width
from tranship.cli.progress import progress
from tranship.cli.revision import Spot, read_spot, spot
from tranship.models.launch import CONFIGS
from tranship.models.produce import Request, produce
from tranship.models.registry import architectures
from tranship.schema.codec import (
    Document,
    digest,
    dump,
    load,
    parse_json,
    read_text,
    write_atomically,
)
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest
from tranship.schema.merge import merge

if TYPE_CHECKING:
    from tranship.runtime.frameworks.tracing.request import DeepGemm, TraceRequest

TITLES: Mapping[str, str] = {"sglang": "SGLang", "vllm": "vLLM"}
"""What people call the engines that can be traced, by package."""

OF_RANKS: Mapping[str, tuple[str, ...]] = {
    "sglang": ("tp_size", "ep_size"),
    "vllm": ("tensor_parallel_size", "enable_expert_parallel"),
}
"""The engines' own arguments that --tp and --ep stand for."""

CHECKPOINT = "checkpoint"
"""What stands in place of an engine for the files of a checkpoint, as a sender."""

PLAIN = "bf16"
_TRACED = "what is traced"
_LINES = 12
"""How much is shown of what a process wrote before it ended without an answer."""

Sources = dict[str, tuple[DType, tuple[int, ...]]]


@dataclass(frozen=True)
class Engine:
    """What was asked for on the command line."""

    framework: str
    config: str
    tp: int
    ep: int
    quantization: str | None
    architecture: str | None
    sources: str | None
    options: Mapping[str, str]
    ranks: Sequence[int]
    deepgemm: str | None = None


def run(asked: Engine, output: str | None, check: str | None) -> Answer:
    """Trace an engine's ranks, merge what they declare, and write it or compare it.

    Raises:
        DiagnosticError: the engine or its checkpoint cannot be had here, a rank does not account
            for all that it holds, or a file is broken, wrong or in the way.
        typer.BadParameter: the framework is unknown, or there is nothing to do with the result.
    """
    _require_sense(asked, output, check)
    refuse_inputs(output or "", [asked.config])
    # Tracing takes minutes, and a file that is wrong should be known before.
    committed = _committed(check) if check is not None else None
    manifest, traced = _checkpoint(asked) if asked.framework == CHECKPOINT else _engine(asked)
    data = dump(manifest)
    source = unwritten(output or _TRACED, data)
    raise_errors(check_document(manifest, source))
    if committed is not None:
        return difference(*committed, Spot(None, _TRACED), Document(manifest, source, digest(data)))
    assert output is not None, "there is something to do with the manifest"
    write_atomically(output, data)
    parts = [
        ("written", GOOD),
        *traced,
        count(len(manifest.buffers), "buffer family", "buffer families"),
        f"{len(data):,} bytes",
    ]
    return Answer(
        [*flow(f"{output}  ", parts, answer_width())],
        {"output": output, "digest": digest(data), "ranks": manifest.world_size},
    )


def _committed(check: str) -> tuple[Spot, Document[BaseModel]]:
    """Read and check the manifest that is compared with."""
    place = spot(check)
    document = read_spot(place)
    if not isinstance(document.value, Manifest):
        message = f"a {format_of(document)} cannot be compared with what is traced, a manifest"
        raise DiagnosticError([Diagnostic("TS914", message, document.source.locate("/format"))])
    return place, document


def _engine(asked: Engine) -> tuple[Manifest, list[str]]:
    """Trace an engine, and say how many ranks that took."""
    with tempfile.TemporaryDirectory() as folder, progress(2) as tell:
        tell("trace")
        traced = _trace(asked, Path(folder))
        tell("merge")
        manifest = _whole(asked, traced)
    return manifest, list(_ranks(len(traced), asked.tp if not asked.ranks else 1))


def _checkpoint(asked: Engine) -> tuple[Manifest, list[str]]:
    """Declare a checkpoint by the headers of its files, and say how many tensors it has."""
    from tranship.runtime.frameworks.checkpoint import checkpoint_declaration
    from tranship.runtime.frameworks.tracing.config import block_of, method_of
    from tranship.runtime.frameworks.tracing.sources import find_safetensors, read_headers

    file = _config_file(asked.config)
    _config(file, None)
    folder = Path(file).parent
    found = read_headers(find_safetensors(Path(asked.sources or folder)))
    if not found:
        message = f"{asked.sources or folder} has no safetensors files"
        raise DiagnosticError([Diagnostic("TS857", message, Location(file))])
    declared = checkpoint_declaration(found, method=method_of(folder), block=block_of(folder))
    return fold(declared), [count(len(found), "tensor", "tensors")]


def _ranks(traced: int, declared: int) -> Iterator[str]:
    """Say how many ranks were traced, and how many are declared if these are more."""
    yield count(traced, "rank traced", "ranks traced")
    if declared > traced:
        yield f"{declared - traced} derived of them"


def _whole(asked: Engine, traced: Sequence[tuple[str, Manifest]]) -> Manifest:
    """Return the manifest of all ranks, or of the one that was asked for."""
    from tranship.runtime.frameworks.tracing.extrapolate import declare_all, find_pattern

    if asked.ranks:
        return traced[0][1]
    if len(traced) == asked.tp:
        return merge(traced)
    told = {found.ranks[0]: found for found in (expand(manifest) for _, manifest in traced)}
    pattern = find_pattern(told)
    assert pattern is not None, "the ranks were found to tell of all"
    return fold(declare_all(pattern, told))


def _require_sense(asked: Engine, output: str | None, check: str | None) -> None:
    if asked.framework not in (*TITLES, CHECKPOINT):
        known = ", ".join((*TITLES, CHECKPOINT))
        raise typer.BadParameter(f"FRAMEWORK {asked.framework!r} is none of {known}")
    if (output is None) == (check is None):
        raise typer.BadParameter("either --output or --check says what to do with the manifest")
    if asked.framework == CHECKPOINT:
        _require_no_engine(asked)
        return
    if len(asked.ranks) > 1:
        raise typer.BadParameter("--rank can be given once; without it all ranks are traced")
    if any(not 0 <= rank < asked.tp for rank in asked.ranks):
        raise typer.BadParameter(f"--rank is one of 0 to {asked.tp - 1}")
    if asked.tp % asked.ep:
        raise typer.BadParameter(f"--ep {asked.ep} does not divide --tp {asked.tp}")
    if asked.framework == "vllm" and asked.ep not in (1, asked.tp):
        raise typer.BadParameter("--ep is 1 or what --tp is: vLLM spreads experts over all ranks")
    _require_known_scales(asked.deepgemm)
    if given := [name for name in OF_RANKS[asked.framework] if name in asked.options]:
        raise typer.BadParameter(f"--tp and --ep say what --option {given[0]} would")
    if importlib.util.find_spec(asked.framework) is None:
        title = TITLES[asked.framework]
        message = f"{title} is not installed, and its own code is what is traced"
        advice = (
            f"install tranship with its {asked.framework} extra, or run this where the engine runs"
        )
        raise DiagnosticError([Diagnostic("TS858", message, help=advice)])


def _require_known_scales(asked: str | None) -> None:
    from tranship.runtime.frameworks.tracing.request import DeepGemm

    if asked not in (None, *get_args(DeepGemm)):
        known = ", ".join(get_args(DeepGemm))
        raise typer.BadParameter(f"--deepgemm {asked!r} is none of {known}")


def _require_no_engine(asked: Engine) -> None:
    """Refuse what is said of an engine where there is none."""
    given = asked.ranks or asked.options or asked.quantization or asked.deepgemm
    if asked.tp > 1 or asked.ep > 1 or given:
        message = "a checkpoint has no ranks, options, other quantization or other scales"
        raise typer.BadParameter(message)
    if asked.architecture is not None:
        raise typer.BadParameter("the tensors of a checkpoint are named by its files")


def _trace(asked: Engine, folder: Path) -> list[tuple[str, Manifest]]:
    """Run the ranks, and return what each declares."""
    from tranship.runtime.frameworks.tracing.request import TraceRequest

    config_file = _config_file(asked.config)
    config = _config(config_file, asked.quantization)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    request = TraceRequest(
        folder=folder,
        tp=asked.tp,
        ep=asked.ep,
        ranks=tuple(asked.ranks),
        arguments={name: _value(text) for name, text in asked.options.items()},
        sources=_sources(asked, config_file, config),
        deepgemm=cast("DeepGemm | None", asked.deepgemm),
        output=folder,
    )
    path = folder / "request.json"
    path.write_text(request.model_dump_json(), encoding="utf-8")
    module = f"tranship.runtime.frameworks.{asked.framework}.trace"
    command = [sys.executable, "-m", module, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return list(_answers(request, TITLES[asked.framework], done.stderr))


def _answers(request: "TraceRequest", title: str, log: str) -> Iterator[tuple[str, Manifest]]:
    from tranship.runtime.frameworks.tracing.request import read_answer

    findings: list[Diagnostic] = []
    last = "\n".join(log.splitlines()[-_LINES:])
    ended = f"{title} ended without an answer; its last words:\n{last}"
    listed = request.list_of_ranks
    if not listed.exists():
        raise DiagnosticError([Diagnostic("TS856", ended)])
    ranks: list[int] = json.loads(listed.read_text())
    for rank in ranks:
        where = Location(f"receiver rank {rank}")
        path = request.answer_of(rank)
        if not path.exists():
            findings.append(Diagnostic("TS856", ended, where))
            continue
        answer = read_answer(path)
        findings += [found.diagnostic() for found in answer.findings]
        if answer.manifest is not None:
            yield where.file, Manifest.model_validate_json(answer.manifest)
    if findings:
        raise DiagnosticError(findings)


def _config_file(given: str) -> str:
    return str(Path(given, "config.json")) if Path(given).is_dir() else given


def _is_config(fields: Mapping[str, object]) -> bool:
    names, quantization = fields.get("architectures"), fields.get("quantization_config")
    listed = cast("list[object]", names) if isinstance(names, list) else []
    return isinstance(next(iter(listed), None), str) and isinstance(quantization, dict | None)


def _config(file: str, quantization: str | None) -> dict[str, object]:
    """Read a config.json, with the quantization that is asked for in place of its own."""
    config = parse_json(read_text(file), file)
    if not isinstance(config, dict) or not _is_config(cast("dict[str, object]", config)):
        message = "a model's config.json is an object that names its architectures"
        raise DiagnosticError([Diagnostic("TS112", message, Location(file))])
    fields = cast("dict[str, object]", config)
    if quantization is None:
        return fields
    if quantization not in (PLAIN, *CONFIGS):
        known = ", ".join((PLAIN, *CONFIGS))
        raise typer.BadParameter(f"--quantization {quantization!r} is none of {known}")
    plain = {name: value for name, value in fields.items() if name != "quantization_config"}
    if quantization == PLAIN:
        return plain
    own = cast("dict[str, object]", fields.get("quantization_config") or {})
    return {**plain, "quantization_config": {**own, **CONFIGS[quantization]}}


def _sources(asked: Engine, config_file: str, config: Mapping[str, object]) -> Sources:
    """Find the checkpoint's tensors: in its files, in a manifest, or in an architecture's data."""
    from tranship.runtime.frameworks.tracing.sources import find_safetensors, read_headers

    if asked.sources is not None and not Path(asked.sources).is_dir():
        return _of_manifest(asked.sources)
    folder = Path(asked.sources or Path(config_file).parent)
    if asked.architecture is None and (files := find_safetensors(folder)):
        return dict(read_headers(files))
    name = asked.architecture or str(config.get("model_type"))
    if name not in architectures() and not name.endswith(".toml"):
        message = f"no tensors of the checkpoint are known: {folder} has no safetensors files"
        advice = (
            f"name a folder of safetensors files with --sources, or one of the architectures"
            f" {', '.join(architectures())}, or a .toml file, with --architecture"
        )
        raise DiagnosticError([Diagnostic("TS857", message, Location(config_file), help=advice)])
    return _declared(produce(Request(name, config_file, "checkpoint", {}, asked.quantization)))


def _of_manifest(path: str) -> Sources:
    """Find the checkpoint's tensors in a manifest of one rank."""
    document = load(path, Manifest)
    raise_errors(check_document(document.value, document.source))
    if document.value.world_size > 1:
        at = document.source.locate("/world_size")
        message = f"the checkpoint's tensors are whole, and {path} is a manifest of several ranks"
        raise DiagnosticError([Diagnostic("TS857", message, at)])
    return _declared(document.value)


def _declared(manifest: Manifest) -> Sources:
    return {buffer.name: (buffer.dtype, buffer.shape) for buffer in expand(manifest).buffers}


def _value(text: str) -> int | bool | str:
    """Read an argument's value as TOML would, and as a text if it is nothing else."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return text
