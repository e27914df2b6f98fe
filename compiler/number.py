"""Write literal numbers in tensor names as indices: `layers.3.w` is `layers.{layer}.w`, layer 3.

Tensors are matched by the literal texts of their names. A manifest that spells a layer out, and
one that counts layers with an index, must mean the same tensor.
"""

from collections.abc import Collection

from tranship.schema.folding.names import index_names, split_name
from tranship.schema.manifest import BufferFamily, Manifest, Piece, TensorFamily
from tranship.schema.mesh import RANK


def numbered(manifest: Manifest) -> Manifest:
    """Rewrite the tensor names of families and pieces, which keep their places in the manifest."""
    axes = {axis.name for axis in manifest.axes} | {RANK}
    return manifest.model_copy(
        update={
            "tensors": tuple(_family(family, axes) for family in manifest.tensors),
            "buffers": tuple(_buffer(buffer, axes) for buffer in manifest.buffers),
        }
    )


def _family(family: TensorFamily, axes: Collection[str]) -> TensorFamily:
    name, fixed = _rewritten(family.name, {*axes, *family.indices})
    tied_to = _with_constants(family.tied_to) if family.tied_to is not None else None
    indices = {**family.indices, **fixed}
    return family.model_copy(update={"name": name, "indices": indices, "tied_to": tied_to})


def _buffer(buffer: BufferFamily, axes: Collection[str]) -> BufferFamily:
    pieces = tuple(_piece(piece, {*axes, *buffer.indices}) for piece in buffer.pieces)
    return buffer.model_copy(update={"pieces": pieces})


def _piece(piece: Piece, taken: Collection[str]) -> Piece:
    tensor, fixed = _rewritten(piece.tensor, {*taken, *piece.indices})
    return piece.model_copy(update={"tensor": tensor, "indices": {**piece.indices, **fixed}})


def _rewritten(name: str, taken: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the name with holes for its numbers, and each new index with its one value."""
    split = split_name(name)
    names = index_names(split.texts, taken)
    text = _joined(split.texts, names)
    return text, {key: str(value) for key, value in zip(names, split.numbers, strict=True)}


def _with_constants(name: str) -> str:
    split = split_name(name)
    return _joined(split.texts, tuple(str(number) for number in split.numbers))


def _joined(texts: tuple[str, ...], holes: tuple[str, ...]) -> str:
    rest = (f"{{{hole}}}{text}" for hole, text in zip(holes, texts[1:], strict=True))
    return texts[0] + "".join(rest)
