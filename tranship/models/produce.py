"""Make a manifest from a config.json, an architecture, a layout and the layout's options."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from tranship.models.beside import apply_beside
from tranship.models.declared import BufferEntry, Layout
from tranship.models.frame import Frame, frame
from tranship.models.model import Model, check_constraints, read_model
from tranship.models.options import Setting, read_options
from tranship.models.problems import Problems
from tranship.models.quantize import SCHEMES, Scheme, index_sets, is_ignored
from tranship.models.registry import load_architecture, load_layout
from tranship.models.rules import Context, apply, covered
from tranship.schema.codec import Source, parse_json, read_text
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import (
    BufferFamily,
    Framework,
    Manifest,
    ModuleFamily,
    Quantization,
    Scaled,
    Side,
)
from tranship.schema.nearest import nearest

NOTHING_QUANTIZED = "bf16"


@dataclass(frozen=True)
class Request:
    """What to declare: names or paths of data files, a config.json, and options as texts."""

    architecture: str
    config: str
    layout: str
    options: Mapping[str, str]
    quantization: str | None = None
    side: Side | None = None


def produce(request: Request) -> Manifest:
    """Make the manifest of a whole side.

    Raises:
        DiagnosticError: everything that is wrong with the request (TS100 to TS118, TS750 to TS760).
    """
    architecture, architecture_file = load_architecture(request.architecture)
    layout, layout_file = load_layout(request.layout)
    source = Source(request.config, read_text(request.config))
    config = parse_json(source.text, request.config)
    if not isinstance(config, dict):
        raise DiagnosticError([Diagnostic("TS112", "a config is an object", source.locate(""))])
    problems = Problems()
    fields = cast("dict[str, object]", config)
    options, settings = read_options(layout, request.layout, request.options, problems)
    model = read_model(architecture, architecture_file, fields, source, problems)
    scheme = _scheme(request, layout, model, problems)
    problems.check()
    sizes = {**model.sizes, "quantized": int(scheme is not None)}
    mesh = frame(layout, layout_file, sizes, options, problems)
    if mesh:
        check_constraints(layout.constraints, mesh.scope, layout_file, problems)
    else:
        problems.check()
    assert mesh, "a layout without mesh is a problem"
    context = Context(model, mesh, layout.quantization, scheme)
    buffers = tuple(_buffers(layout, layout_file, context, problems))
    problems.check()
    return _manifest(request, layout, settings, context, buffers)


def _scheme(request: Request, layout: Layout, model: Model, problems: Problems) -> Scheme | None:
    """Choose the quantization: as asked for, else as the config says where the layout can."""
    name = request.quantization
    if name is None:
        name = model.quantization if layout.quantization and model.quantization else None
        return SCHEMES[name or NOTHING_QUANTIZED]
    if name not in SCHEMES:
        close = nearest(name, SCHEMES, limit=1)
        expected = f"one of {', '.join(SCHEMES)}"
        message = f"there is no quantization {name!r}"
        suggestion = close[0] if close else None
        problems.add(
            Diagnostic("TS757", message, expected=expected, found=name, suggestion=suggestion)
        )
        return None
    if SCHEMES[name] and layout.quantization is None:
        message = f"layout {request.layout} holds no weights in {name}"
        problems.add(Diagnostic("TS757", message, expected=NOTHING_QUANTIZED, found=name))
    return SCHEMES[name]


def _buffers(
    layout: Layout, file: str, context: Context, problems: Problems
) -> Iterator[BufferFamily]:
    names: set[str] = set()
    held: set[str] = set()
    for number, entry in enumerate(layout.buffers):
        with problems.gather(file, f"/buffers/{number}", _subject(entry), entry.help):
            if entry.beside:
                yield from apply_beside(entry, entry.beside, context, frozenset(names))
                continue
            for family in apply(entry, context):
                names.add(family.name)
                yield family
        held |= covered(entry, tuple(context.model.tensors))
    for role, tensor in context.model.tensors.items():
        if role not in held:
            message = f"no rule of the layout is about {role!r}, the role of {tensor.name!r}"
            problems.add(Diagnostic("TS760", message, expected=f"a rule about {role}"))


def _subject(entry: BufferEntry) -> str:
    """Name the roles of a rule."""
    return " and ".join([*entry.each, *(part.role for part in entry.parts)])


def _manifest(
    request: Request,
    layout: Layout,
    settings: Mapping[str, Setting],
    context: Context,
    buffers: tuple[BufferFamily, ...],
) -> Manifest:
    manifest = Manifest(
        format="tranship.manifest/1",
        side=request.side or layout.side,
        framework=Framework(name=layout.framework, version=layout.version, options=dict(settings)),
        world_size=context.frame.world_size,
        axes=context.frame.axes,
        tensors=tuple(tensor.family for tensor in context.model.tensors.values()),
        buffers=buffers,
        quantization=_quantization(context, buffers),
    )
    return manifest.model_copy(update={"tables": _used_tables(manifest, context.frame)})


def _used_tables(manifest: Manifest, mesh: Frame) -> dict[str, tuple[int, ...]]:
    text = manifest.model_dump_json(include={"buffers"})
    return {name: values for name, values in mesh.tables.items() if f"{name}[" in text}


def _quantization(context: Context, buffers: Iterable[BufferFamily]) -> Quantization | None:
    if context.scheme is None:
        return None
    scaled = {p.tensor for b in buffers if isinstance(b.encoding, Scaled) for p in b.pieces}
    families = tuple(_unquantized(context.model, frozenset(scaled)))
    return Quantization(method=context.scheme.name, unquantized=families)


def _unquantized(model: Model, scaled: frozenset[str]) -> Iterator[ModuleFamily]:
    for tensor in model.tensors.values():
        if len(tensor.shape) < 2:
            continue
        if tensor.name not in scaled:
            yield ModuleFamily(name=tensor.module, indices=tensor.indices)
            continue
        left = [
            members
            for members, module in (tensor.modules() if model.ignored else ())
            if is_ignored(module, model.ignored)
        ]
        for indices in index_sets(tensor.indices, left):
            yield ModuleFamily(name=tensor.module, indices=indices)
