"""Merge the manifests that each rank of one side wrote into one manifest of the whole side."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Label, Location
from tranship.schema.expand import declared_ranks, expand, expand_tensors
from tranship.schema.fold import fold
from tranship.schema.indexset import to_text
from tranship.schema.manifest import Manifest
from tranship.schema.mesh import table_arrays
from tranship.schema.records import Declaration, QuantizationRecord, TensorRecord

Named = tuple[str, Manifest]
"""A manifest and the name of its file."""


def merge(manifests: Sequence[Named]) -> Manifest:
    """Merge manifests, given with their files' names, that speak for all ranks of one side.

    A tensor is declared if one of them declares it.

    Args:
        manifests: At least one manifest, each without errors (`check.py` finds them).

    Raises:
        DiagnosticError: TS140 to TS148; everything on which the manifests do not agree.
        ValueError: there is no manifest.
    """
    if not manifests:
        raise ValueError("there is nothing to merge")
    problems = [*_headers(manifests), *_repeated_ranks(manifests), *_missing_ranks(manifests)]
    problems += _tensors(manifests)
    if problems:
        raise DiagnosticError(problems)
    expanded = [expand(manifest) for _, manifest in manifests]
    first = expanded[0]
    return fold(
        Declaration(
            side=first.side,
            world_size=first.world_size,
            ranks=tuple(range(first.world_size)),
            axes=first.axes,
            tensors=tuple(sorted({record for one in expanded for record in one.tensors})),
            buffers=tuple(sorted(record for one in expanded for record in one.buffers)),
            framework=first.framework,
            quantization=_quantization(expanded),
        )
    )


def _quantization(expanded: Sequence[Declaration]) -> QuantizationRecord | None:
    """List what any of the ranks leaves unquantized; each lists what it holds itself."""
    found = [one.quantization for one in expanded if one.quantization]
    if not found:
        return None
    names = {name for one in found for name in one.unquantized}
    return QuantizationRecord(found[0].method, tuple(sorted(names)))


def _axes_text(manifest: Manifest) -> str:
    listed = [f"{axis.name} {axis.size} (stride {axis.stride})" for axis in manifest.axes]
    return ", ".join(listed) or "no axes"


def _framework_text(manifest: Manifest) -> str:
    framework = manifest.framework
    if framework is None:
        return "none"
    options = [f"{name}={value}" for name, value in framework.options.items()]
    return " ".join(filter(None, [framework.name, framework.version, *options]))


def _method_text(manifest: Manifest) -> str:
    return manifest.quantization.method if manifest.quantization else "none"


_HEADERS: tuple[tuple[str, str, str, Callable[[Manifest], str]], ...] = (
    ("TS140", "side", "sides", lambda manifest: manifest.side.value),
    ("TS141", "world_size", "world sizes", lambda manifest: str(manifest.world_size)),
    ("TS142", "axes", "axes", _axes_text),
    ("TS143", "framework", "frameworks", _framework_text),
    ("TS148", "quantization", "quantizations", _method_text),
)


def _headers(manifests: Sequence[Named]) -> Iterator[Diagnostic]:
    """TS140 to TS143, TS148: what all ranks have in common, compared with the first file."""
    first_file, first = manifests[0]
    for code, field, plural, describe in _HEADERS:
        for file, manifest in manifests[1:]:
            expected, found = describe(first), describe(manifest)
            if found != expected:
                yield Diagnostic(
                    code=code,
                    message=f"the {plural} differ: {found} here, {expected} in {first_file}",
                    at=Location(file, f"/{field}"),
                    expected=expected,
                    found=found,
                    labels=(Label(Location(first_file, f"/{field}"), expected),),
                    help="merge manifests of one side of one job",
                )


def _repeated_ranks(manifests: Sequence[Named]) -> Iterator[Diagnostic]:
    """TS144: ranks that two manifests speak for, once per two files."""
    owners: dict[int, str] = {}
    for file, manifest in manifests:
        shared: defaultdict[str, list[int]] = defaultdict(list)
        for rank in declared_ranks(manifest):
            if rank in owners:
                shared[owners[rank]].append(rank)
            owners.setdefault(rank, file)
        for other, ranks in shared.items():
            yield Diagnostic(
                code="TS144",
                message=f"both {file} and {other} speak for {_ranks_text(ranks)}",
                at=Location(file, "/ranks"),
                labels=(Label(Location(other, "/ranks"), "declared here first"),),
                help="leave one of the files out",
            )


def _missing_ranks(manifests: Sequence[Named]) -> Iterator[Diagnostic]:
    """TS145: ranks of the first manifest's world that no manifest speaks for."""
    file, first = manifests[0]
    declared = {rank for _, manifest in manifests for rank in declared_ranks(manifest)}
    missing = sorted(set(range(first.world_size)) - declared)
    if missing:
        yield Diagnostic(
            code="TS145",
            message=f"no manifest speaks for {_ranks_text(missing)}",
            at=Location(file, "/world_size"),
            expected=f"manifests of ranks {to_text(range(first.world_size))}",
            found=f"manifests of ranks {to_text(declared)}",
            help="merge the manifests of all ranks at once",
        )


def _ranks_text(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {to_text(ranks)}"


_Place = tuple[str, str]


def _tensors(manifests: Sequence[Named]) -> Iterator[Diagnostic]:
    """TS146 and TS147: tensors with two shapes or two ties, once per two families."""
    known: dict[str, tuple[TensorRecord, _Place]] = {}
    found: defaultdict[tuple[str, _Place, _Place], list[tuple[TensorRecord, TensorRecord]]]
    found = defaultdict(list)
    for file, manifest in manifests:
        lookup = table_arrays(manifest.tables)
        for number, family in enumerate(manifest.tensors):
            here = (file, f"/tensors/{number}")
            for record in expand_tensors(family, lookup):
                first, place = known.setdefault(record.name, (record, here))
                if first.shape != record.shape:
                    found["shape", here, place].append((record, first))
                if first.tied_to != record.tied_to:
                    found["tied_to", here, place].append((record, first))
    for (field, here, place), pairs in found.items():
        yield _tensor_diagnostic(field, here, place, pairs)


def _tensor_diagnostic(
    field: str, here: _Place, place: _Place, pairs: Sequence[tuple[TensorRecord, TensorRecord]]
) -> Diagnostic:
    record, first = pairs[0]
    others = f" and {len(pairs) - 1:,} more" if len(pairs) > 1 else ""
    if field == "shape":
        code, found, expected = "TS146", str(list(record.shape)), str(list(first.shape))
        message = f"{record.name}{others}: shape {found} here, {expected} in {place[0]}"
    else:
        code, found, expected = "TS147", record.tied_to or "nothing", first.tied_to or "nothing"
        message = f"{record.name}{others}: tied to {found} here, to {expected} in {place[0]}"
    return Diagnostic(
        code=code,
        message=message,
        at=Location(here[0], f"{here[1]}/{field}"),
        expected=expected,
        found=found,
        labels=(Label(Location(place[0], f"{place[1]}/{field}"), expected),),
        help="declare the tensor as the checkpoint has it, on every rank",
    )
