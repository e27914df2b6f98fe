"""Write folded families as manifest models, once their tables have names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tranship.schema.expression import Expression, to_text
from tranship.schema.folding.groups import Texts
from tranship.schema.folding.names import join_name
from tranship.schema.folding.parts import Contents, FillDraft, PieceDraft
from tranship.schema.folding.rows import NUMBERS, Cover
from tranship.schema.folding.terms import rename_tables
from tranship.schema.indexset import to_text as index_set_text
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Encoding,
    Fill,
    IntExpression,
    Piece,
    Plain,
    Role,
    Scale,
    Scaled,
    TensorFamily,
    Transfer,
)
from tranship.schema.records import BufferRecord, Ints
from tranship.schema.template import Template, template_text


@dataclass(frozen=True)
class TensorDraft:
    """A family of tensors: the texts of its name and of its tie's, its shape, and the cover."""

    texts: tuple[Texts, ...]
    shape: Ints
    cover: Cover
    first: str


@dataclass(frozen=True)
class BufferDraft:
    """A family of buffers: the texts of all names in it, the cover, contents and first member."""

    texts: tuple[Texts, ...]
    cover: Cover
    contents: Contents
    first: BufferRecord


def draft_covers(tensors: Sequence[TensorDraft], buffers: Sequence[BufferDraft]) -> Iterator[Cover]:
    """Yield every cover in the order in which tables are named."""
    yield from (draft.cover for draft in tensors)
    for draft in buffers:
        yield draft.cover
        yield from (piece.cover for piece in draft.contents.pieces)
        yield from (fill.cover for fill in draft.contents.fills)


@dataclass(frozen=True)
class Writer:
    """Writes drafts with the final names of their tables."""

    table_names: Mapping[str, str]

    def tensor(self, draft: TensorDraft) -> TensorFamily:
        """Write one family of tensors.

        A number in the name of a tie stays in braces if it is constant: two templates name the
        same tensors only if their texts are equal.
        """
        name, tie = (
            template_text(Template(texts, numbers))
            for texts, numbers in self._numbers(draft.texts, draft.cover)
        )
        indices = _sets(draft.cover)
        return TensorFamily(name=name, indices=indices, shape=draft.shape, tied_to=tie or None)

    def buffer(self, draft: BufferDraft) -> BufferFamily:
        """Write one family of buffers."""
        found, first = draft.cover, draft.first
        name, *others = self._names(draft.texts, found)
        return BufferFamily(
            name=name,
            indices=_sets(found),
            at=self._at(found),
            dtype=first.dtype,
            shape=self._entries(found, "shape"),
            strides=self._entries(found, "strides") if "strides" in found.fields else None,
            kind=first.kind,
            role=_role(first, others),
            encoding=_encoding(first, others),
            layout=first.layout,
            pieces=tuple(self._piece(piece) for piece in draft.contents.pieces),
            fills=tuple(self._fill(fill) for fill in draft.contents.fills),
        )

    def _piece(self, draft: PieceDraft) -> Piece:
        found, likeness = draft.cover, draft.likeness
        return Piece(
            tensor=self._names((likeness.texts,), found)[0],
            part=likeness.part,
            indices=_sets(found),
            at=self._at(found),
            start=self._entries(found, "start"),
            extent=self._entries(found, "extent"),
            step=likeness.step if any(step != 1 for step in likeness.step) else None,
            offset=self._entries(found, "offset")[0],
            strides=self._entries(found, "strides") if "strides" in found.fields else None,
            origin=self._entries(found, "origin") if "origin" in found.fields else None,
        )

    def _fill(self, draft: FillDraft) -> Fill:
        found, likeness = draft.cover, draft.likeness
        return Fill(
            indices=_sets(found),
            at=self._at(found),
            offset=self._entries(found, "offset")[0],
            sizes=self._entries(found, "sizes"),
            strides=self._entries(found, "strides"),
            value=None if likeness.value < 0 else 1 if likeness.value else 0,
            reason=likeness.reason or None,
        )

    def _names(self, texts: tuple[Texts, ...], found: Cover) -> list[str]:
        return [join_name(one, numbers) for one, numbers in self._numbers(texts, found)]

    def _numbers(
        self, texts: tuple[Texts, ...], found: Cover
    ) -> Iterator[tuple[Texts, tuple[Expression, ...]]]:
        """Yield the texts of each name with the numbers between them."""
        numbers = iter([self._named(number) for number in found.fields[NUMBERS]])
        for one in texts:
            yield one, tuple(next(numbers) for _ in one[1:])

    def _at(self, found: Cover) -> dict[str, IntExpression]:
        return {axis: to_text(self._named(one)) for axis, one in found.at.items()}

    def _entries(self, found: Cover, field: str) -> tuple[IntExpression, ...]:
        return tuple(to_text(self._named(one)) for one in found.fields[field])

    def _named(self, expression: Expression) -> Expression:
        return rename_tables(expression, self.table_names)


def _sets(found: Cover) -> dict[str, str]:
    return {name: index_set_text(members) for name, members in found.indices.items()}


def _role(first: BufferRecord, names: list[str]) -> Role:
    _, _, alias, *inputs = names
    match first.role.kind:
        case "derived":
            return Derived(kind="derived", recipe=first.role.recipe, inputs=tuple(inputs))
        case "constant":
            return ConstantBuffer(kind="constant", reason=first.role.reason)
        case "alias":
            return Alias(kind="alias", of=alias)
        case _:
            return Transfer()


def _encoding(first: BufferRecord, names: list[str]) -> Encoding:
    scale, of, *_ = names
    encoding = first.encoding
    match encoding.kind:
        case "scaled":
            return Scaled.model_validate(
                {
                    "kind": "scaled",
                    "block": encoding.block,
                    "scale": scale,
                    "scale_values": encoding.scale_values,
                }
            )
        case "scale":
            return Scale(kind="scale", of=of)
        case _:
            return Plain()
