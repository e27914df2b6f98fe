"""Manifests with one mistake each, and the code of the diagnostic that names it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tranship.schema.dtypes import DType
from tranship.schema.manifest import BufferFamily, Manifest, Piece, Scale, Scaled, Side, Transfer
from tranship.schema.testing.cases import Limits
from tranship.schema.testing.transfers import manifests


@dataclass(frozen=True)
class BrokenManifest:
    """A manifest, and the code that must be among those of its diagnostics."""

    manifest: Manifest
    code: str


@dataclass(frozen=True)
class _Mistake:
    """What to change in which buffers: `change` of one buffer gives those in its place."""

    code: str
    applies: Callable[[BufferFamily], bool]
    change: Callable[[BufferFamily], tuple[BufferFamily, ...]]


def _is_transfer(buffer: BufferFamily) -> bool:
    return isinstance(buffer.role, Transfer) and bool(buffer.pieces)


def _with(buffer: BufferFamily, **fields: object) -> tuple[BufferFamily, ...]:
    return (buffer.model_copy(update=fields),)


def _misnamed(buffer: BufferFamily) -> tuple[Piece, ...]:
    first, *others = buffer.pieces
    return (first.model_copy(update={"tensor": f"nowhere.{first.tensor}"}), *others)


_MISTAKES = (
    _Mistake("TS161", lambda buffer: True, lambda buffer: (buffer, buffer)),
    _Mistake("TS187", _is_transfer, lambda buffer: _with(buffer, layout="row_mayor")),
    _Mistake(
        "TS166",
        _is_transfer,
        lambda buffer: _with(buffer, pieces=(*buffer.pieces, buffer.pieces[0])),
    ),
    _Mistake("TS158", _is_transfer, lambda buffer: _with(buffer, pieces=_misnamed(buffer))),
    _Mistake(
        "TS172",
        lambda buffer: isinstance(buffer.encoding, Scaled),
        lambda buffer: _with(buffer, dtype=DType.BF16),
    ),
    _Mistake("TS176", lambda buffer: isinstance(buffer.encoding, Scale), lambda buffer: ()),
)


def _ways(manifest: Manifest) -> Iterator[tuple[_Mistake, int]]:
    """Each mistake that can be made, and in which buffer family."""
    for mistake in _MISTAKES:
        for number, buffer in enumerate(manifest.buffers):
            if mistake.applies(buffer):
                yield mistake, number


@st.composite
def broken_manifests(
    draw: DrawFn, side: Side | str | None = None, limits: Limits | None = None
) -> BrokenManifest:
    """Draw a manifest with one mistake, such as a buffer declared twice or scales left out.

    Args:
        draw: Given by Hypothesis.
        side: "sender" or "receiver"; either if it is None.
        limits: How large it may be.
    """
    manifest = draw(manifests(side, limits))
    ways: Sequence[tuple[_Mistake, int]] = list(_ways(manifest))
    assume(ways)
    mistake, number = draw(st.sampled_from(ways))
    before, after = manifest.buffers[:number], manifest.buffers[number + 1 :]
    changed = (*before, *mistake.change(manifest.buffers[number]), *after)
    return BrokenManifest(manifest.model_copy(update={"buffers": changed}), mistake.code)
