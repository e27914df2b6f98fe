"""The launch arguments with which an engine holds what a manifest declares."""

import json
from collections.abc import Iterator, Mapping

from tranship.models.declared import Layout, Option
from tranship.models.options import Setting
from tranship.models.registry import layouts, load_layout
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.expand import expand_tensors
from tranship.schema.manifest import Manifest, ModuleFamily, Quantization, TensorFamily

_FP8_BLOCKS: Mapping[str, object] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}

CONFIGS: Mapping[str, Mapping[str, object]] = {
    "fp8-block128": _FP8_BLOCKS,
    "fp8-block128-ue8m0": {**_FP8_BLOCKS, "scale_fmt": "ue8m0"},
}
"""The quantization_config of a config.json, by the name of the quantization."""


def launch_arguments(manifest: Manifest, file: str) -> list[str]:
    """Return the arguments, in the order of the layout's options.

    Args:
        manifest: A manifest that records its framework's options.
        file: Its file, for diagnostics.

    Raises:
        DiagnosticError: TS761, they do not follow from the manifest.
    """
    layout = _layout(manifest, file)
    recorded = manifest.framework.options if manifest.framework else {}
    arguments = [
        argument
        for name, option in layout.options.items()
        if name in recorded
        for argument in _flag(option, recorded[name])
    ]
    if manifest.quantization is None or layout.launch is None:
        return arguments
    config = quantization_config(manifest, manifest.quantization, file)
    text = json.dumps({"quantization_config": config})
    return [*arguments, *(text if one == "<json>" else one for one in layout.launch.quantized)]


def _layout(manifest: Manifest, file: str) -> Layout:
    name = manifest.framework.name if manifest.framework else None
    found = [layout for layout, _ in map(load_layout, layouts()) if layout.launch]
    for layout in found:
        if layout.framework == name:
            return layout
    message = "the manifest does not say which engine holds it"
    if name is not None:
        message = f"no launch arguments of framework {name!r} are known"
    expected = f"one of {', '.join(layout.framework for layout in found)}"
    at = Location(file, "/framework" if name else "")
    raise DiagnosticError([Diagnostic("TS761", message, at, expected=expected, found=name)])


def _flag(option: Option, value: Setting) -> Iterator[str]:
    if option.flag is None or value is False:
        return
    yield option.flag
    if value is not True:
        yield str(value)


def quantization_config(
    manifest: Manifest, quantization: Quantization, file: str
) -> dict[str, object]:
    """Return what the `quantization_config` of a config.json says of a manifest.

    Raises:
        DiagnosticError: TS761, the quantization is not one that a config can state.
    """
    if quantization.method not in CONFIGS:
        message = f"no config states the quantization {quantization.method!r}"
        expected = f"one of {', '.join(CONFIGS)}"
        at = Location(file, "/quantization/method")
        raise DiagnosticError([Diagnostic("TS761", message, at, expected=expected)])
    names = [name for family in quantization.unquantized for name in _names(manifest, family)]
    return {**CONFIGS[quantization.method], "modules_to_not_convert": list(dict.fromkeys(names))}


def _names(manifest: Manifest, family: ModuleFamily) -> Iterator[str]:
    """Name modules; all members of a list of modules are named by the list."""
    name, indices = family.name, dict(family.indices)
    for index in reversed(family.indices):
        head, hole, _ = name.partition(f".{{{index}}}")
        if not hole or len(indices) == 1 or not _complete(manifest, family, index):
            break
        name = head
        del indices[index]
    modules = TensorFamily(name=name, indices=indices, shape=())
    yield from (record.name for record in expand_tensors(modules, {}))


def _complete(manifest: Manifest, family: ModuleFamily, index: str) -> bool:
    """Whether the family has all members that there are of an index."""
    return any(
        tensor.name.rpartition(".")[0] == family.name
        and tensor.indices.get(index) == family.indices[index]
        for tensor in manifest.tensors
    )
