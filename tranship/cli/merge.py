"""`tranship merge`: the manifests that each rank wrote, as one of the whole side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tranship.cli.layout import GOOD, count, flow
from tranship.cli.load import check_document, raise_errors, refuse_inputs, unwritten
from tranship.cli.output import Answer, answer_width
from tranship.cli.progress import progress
from tranship.schema.codec import Document, Source, digest, dump, load, write_atomically
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Label, Location
from tranship.schema.manifest import Manifest
from tranship.schema.merge import merge


def run(files: Sequence[str], output: str) -> Answer:
    """Merge manifests and write the result, which is checked like any other.

    Raises:
        DiagnosticError: a manifest is wrong, they do not agree, or a file is in the way.
    """
    refuse_inputs(output, files)
    with progress(len(files) + 1) as tell:
        documents = _read_all(files, tell)
        tell("merge")
        merged = _merge(documents)
        data = dump(merged)
        raise_errors(check_document(merged, unwritten(output, data)))
    write_atomically(output, data)
    families = count(len(merged.buffers), "buffer family", "buffer families")
    parts = [("written", GOOD), count(merged.world_size, "rank"), families]
    return Answer(
        [*flow(f"{output}  ", parts, answer_width())],
        {"output": output, "digest": digest(data), "ranks": merged.world_size},
    )


def _read_all(files: Sequence[str], tell: Callable[[str], None]) -> list[Document[Manifest]]:
    documents: list[Document[Manifest]] = []
    found: list[Diagnostic] = []
    for file in files:
        tell(file)
        try:
            document = load(file, Manifest)
        except DiagnosticError as error:
            found += error.diagnostics
            continue
        found += check_document(document.value, document.source)
        documents.append(document)
    raise_errors(found)
    return documents


def _merge(documents: Sequence[Document[Manifest]]) -> Manifest:
    try:
        return merge([(document.source.file, document.value) for document in documents])
    except DiagnosticError as error:
        sources = {document.source.file: document.source for document in documents}
        placed = [_placed(one, sources) for one in error.diagnostics]
    raise DiagnosticError(placed)


def _placed(diagnostic: Diagnostic, sources: Mapping[str, Source]) -> Diagnostic:
    """Find the lines of what is known by its pointer."""

    def find(at: Location) -> Location:
        return sources[at.file].locate(at.pointer)

    labels = tuple(Label(find(label.at), label.text) for label in diagnostic.labels)
    return replace(diagnostic, at=diagnostic.at and find(diagnostic.at), labels=labels)
