"""A diff is empty if and only if the two manifests stand for the same records."""

from dataclasses import replace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema.declarations import dense_tensors, fsdp, megatron_moe, sglang_moe
from tests.schema.strategies import declarations, manifests
from tranship.compiler.diff import diff_manifests
from tranship.schema import indexset
from tranship.schema.expand import expand
from tranship.schema.expression import Variable, parse, substitute, to_text
from tranship.schema.fold import fold
from tranship.schema.manifest import BufferFamily, Manifest, TensorFamily
from tranship.schema.records import Declaration
from tranship.schema.template import Template, parse_template, template_text


def means_the_same(old: Manifest, new: Manifest) -> bool:
    return expand(old) == expand(new)


def agrees(old: Manifest, new: Manifest) -> None:
    assert (diff_manifests(old, new) == ()) == means_the_same(old, new)


@given(manifests(), manifests())
@settings(max_examples=150, deadline=None)
def test_diff_of_any_two_manifests_agrees_with_their_records(old: Manifest, new: Manifest) -> None:
    assert diff_manifests(old, old) == ()
    agrees(old, new)


def renamed_name(name: str, names: dict[str, str]) -> str:
    template = parse_template(name)
    wanted = {old: Variable(new) for old, new in names.items()}
    holes = tuple(substitute(hole, wanted) for hole in template.holes)
    return template_text(Template(template.texts, holes))


EXPRESSIONS = {
    "start", "extent", "strides", "origin", "sizes", "shape", "offset", "turn", "round",
}  # fmt: skip


TEMPLATES = {"name", "tensor", "of", "scale", "inputs", "tied_to", "buffer", "source"}


def renamed(value: Any, names: dict[str, str], field: str = "") -> Any:
    """Call the indices of a family otherwise, in its JSON."""
    if isinstance(value, dict):
        return renamed_object(cast("dict[str, Any]", value), names, field)
    if isinstance(value, list):
        return [renamed(inner, names, field) for inner in cast("list[Any]", value)]
    if isinstance(value, str) and field in EXPRESSIONS:
        wanted = {old: Variable(new) for old, new in names.items()}
        return to_text(substitute(parse(value), wanted))
    return renamed_name(value, names) if isinstance(value, str) and field in TEMPLATES else value


def renamed_object(members: dict[str, Any], names: dict[str, str], field: str) -> dict[str, Any]:
    if field == "indices":
        return {names.get(key, key): inner for key, inner in members.items()}
    inside = "offset" if field == "at" else ""
    return {key: renamed(inner, names, inside or key) for key, inner in members.items()}


def with_other_index_names(manifest: Manifest) -> Manifest:
    names = {"layer": "block", "expert": "number", "group": "member"}
    buffers = [renamed(one.model_dump(mode="json"), names) for one in manifest.buffers]
    tensors = [renamed(one.model_dump(mode="json"), names) for one in manifest.tensors]
    return manifest.model_copy(
        update={
            "buffers": tuple(BufferFamily.model_validate(one, strict=False) for one in buffers),
            "tensors": tuple(TensorFamily.model_validate(one, strict=False) for one in tensors),
        }
    )


def split_indices(family: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut a family of an edge, in its JSON, in two along its first index."""
    for index, text in family.get("indices", {}).items():
        members = indexset.parse(text)
        if len(members) > 1:
            parts = [indexset.to_text(part) for part in (members[:1], members[1:])]
            return [{**family, "indices": {**family["indices"], index: part}} for part in parts]
    return [family]


def split(family: BufferFamily | TensorFamily) -> list[BufferFamily | TensorFamily]:
    """Cut a family in two along its first index."""
    for index, text in family.indices.items():
        members = indexset.parse(text)
        if len(members) > 1:
            parts = members[:1], members[1:]
            return [
                family.model_copy(
                    update={"indices": {**family.indices, index: indexset.to_text(part)}}
                )
                for part in parts
            ]
    return [family]


def rearranged(manifest: Manifest) -> Manifest:
    """Put families in another order, each cut in two, with other names for their indices."""
    buffers = [part for family in reversed(manifest.buffers) for part in split(family)]
    tensors = [part for family in reversed(manifest.tensors) for part in split(family)]
    cut = manifest.model_copy(update={"buffers": tuple(buffers), "tensors": tuple(tensors)})
    return with_other_index_names(cut)


@given(manifests(), manifests(), st.sampled_from([(0, 1, 0, 1, 2), (0, 1, 0, 1, 1)]))
@settings(max_examples=100, deadline=None)
def test_diff_of_a_changed_family_agrees_with_its_records(
    old: Manifest, other: Manifest, local: tuple[int, ...]
) -> None:
    families = (other.buffers[0], *old.buffers[1:])
    agrees(old, old.model_copy(update={"buffers": families, "tables": {"local": local}}))


@given(manifests())
@settings(max_examples=100, deadline=None)
def test_other_families_of_the_same_records_are_no_change(manifest: Manifest) -> None:
    other = rearranged(manifest)
    assert means_the_same(manifest, other)
    assert diff_manifests(manifest, other) == ()


@given(declarations())
@settings(max_examples=60, deadline=None)
def test_folded_and_rearranged_records_are_no_change(declaration: Declaration) -> None:
    manifest = fold(declaration)
    assert diff_manifests(manifest, rearranged(manifest)) == ()


REAL = [sglang_moe(), megatron_moe(), fsdp(dense_tensors(2, 256, 512, 1000), 3)]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Declaration, Declaration]:
    """Records of a framework, and the same with one number or word of one of them changed."""
    whole = draw(st.sampled_from(REAL))
    place = draw(st.integers(0, len(whole.buffers) - 1))
    buffer = whole.buffers[place]
    changes = [
        replace(buffer, layout="swizzled"),
        replace(buffer, shape=(*buffer.shape, 1), strides=(*buffer.strides, 1)),
        replace(buffer, name=f"{buffer.name}_2"),
    ]
    if buffer.pieces:
        number = draw(st.integers(0, len(buffer.pieces) - 1))
        piece = buffer.pieces[number]
        other = draw(
            st.sampled_from(
                [
                    replace(piece, offset=piece.offset + 1),
                    replace(piece, start=(piece.start[0] + 1, *piece.start[1:])),
                    replace(piece, extent=(piece.extent[0] - 1, *piece.extent[1:])),
                    replace(piece, strides=(piece.strides[0] + 1, *piece.strides[1:])),
                ]
            )
        )
        pieces = (*buffer.pieces[:number], other, *buffer.pieces[number + 1 :])
        changes += [replace(buffer, pieces=tuple(sorted(pieces)))] * 3
    buffers = list(whole.buffers)
    chosen = draw(st.sampled_from([None, *changes]))
    buffers[place : place + 1] = [] if chosen is None else [chosen]
    return whole, replace(whole, buffers=tuple(sorted(buffers)))


@given(damaged())
@settings(max_examples=40, deadline=None)
def test_any_damage_to_a_record_is_a_change(pair: tuple[Declaration, Declaration]) -> None:
    old, new = (fold(one) for one in pair)
    agrees(old, new)
    assert diff_manifests(old, new)
    assert diff_manifests(new, old)
