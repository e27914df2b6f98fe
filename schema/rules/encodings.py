"""How values are stored: codes and scales in types that can hold them, each naming the other."""

from collections.abc import Iterator

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.dtypes import CODE_DTYPES, SCALE_DTYPES, DType
from tranship.schema.manifest import BufferFamily, Part, Plain, Scale, Scaled
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.links import Links, find_links, missing
from tranship.schema.rules.nametables import numbers_of, split_name
from tranship.schema.rules.subject import PieceSite, Subject


def encodings(subject: Subject) -> Iterator[Finding]:
    """Check dtypes, the parts and fields of pieces, and that weights and scales name each other."""
    for number, buffer in enumerate(subject.manifest.buffers):
        path = ("buffers", number)
        match buffer.encoding:
            case Scaled(scale=name):
                yield from _dtype("TS172", path, buffer, CODE_DTYPES, "codes")
                yield from _partner((*path, "encoding", "scale"), subject, number, name)
            case Scale(of=name):
                yield from _dtype("TS173", path, buffer, SCALE_DTYPES, "scales")
                yield from _partner((*path, "encoding", "of"), subject, number, name)
            case Plain():
                pass
    for site in subject.pieces:
        yield from _piece(site)
        block, shapes = block_of(subject, site), subject.shapes(site)
        if block is not None and any(len(shape) != len(block) for shape in shapes):
            yield Finding(
                "TS174",
                (*site.path, "tensor"),
                "the block does not have one entry for each dim of the tensor",
                expected="a block for shape "
                + " or ".join(sorted(str(list(shape)) for shape in shapes)),
                found=str(list(block)),
            )


def _piece(site: PieceSite) -> Iterator[Finding]:
    kind, piece = site.buffer.encoding.kind, site.piece
    part = Part.SCALE if kind == "scale" else Part.VALUE
    if piece.part is not part:
        yield Finding(
            "TS181",
            (*site.path, "part"),
            f"a piece of {site.buffer.name!r} holds part {piece.part}, and its encoding is {kind}",
            expected=part,
            found=piece.part,
        )
    if kind == "plain" and piece.origin is not None:
        yield Finding(
            "TS182",
            (*site.path, "origin"),
            f"buffer {site.buffer.name!r} is plain, so that its pieces have no blocks",
            expected="no origin",
        )
    if kind != "plain" and any(step != 1 for step in piece.step or ()):
        yield Finding(
            "TS175",
            (*site.path, "step"),
            f"a piece of {site.buffer.name!r} skips elements",
            expected="step 1 in every dim, as blocks are of neighbours",
            found=str(list(piece.step or ())),
        )


def _dtype(
    code: str, path: Path, buffer: BufferFamily, allowed: frozenset[DType], what: str
) -> Iterator[Finding]:
    if buffer.dtype not in allowed:
        yield Finding(
            code,
            (*path, "dtype"),
            f"buffer {buffer.name!r} holds {what}, and its dtype is {buffer.dtype}",
            expected=" or ".join(sorted(allowed)),
            found=buffer.dtype,
        )


def _partner(path: Path, subject: Subject, number: int, name: str) -> Iterator[Finding]:
    """Check the buffer that holds the scales of this one's codes, or the codes of its scales."""
    links = find_links(subject, number, name)
    yield from missing("TS176", path, name, links, subject)
    for owner in links.owners:
        yield from _mutual(path, subject, number, owner, links)
        yield from _exponents(path, subject, number, owner)
    blocks = {str(list(block)) for block in partner_blocks(subject, links.owners)}
    if len(blocks) > 1:
        yield Finding(
            "TS174",
            path,
            f"buffer {subject.manifest.buffers[number].name!r} has the scales of several blocks",
            expected="one block",
            found=" and ".join(sorted(blocks)),
            help="declare the scales of each block as a family of their own",
        )


def _exponents(path: Path, subject: Subject, number: int, owner: int) -> Iterator[Finding]:
    """Scales that are stored as exponents are powers of two."""
    codes, scales = (subject.manifest.buffers[n] for n in (number, owner))
    if (
        isinstance(codes.encoding, Scaled)
        and scales.dtype is DType.F8E8M0FNU
        and codes.encoding.scale_values != "power_of_two"
    ):
        yield Finding(
            "TS180",
            (*path[:-1], "scale_values"),
            f"the scales of {codes.name!r} are stored as {scales.dtype}",
            expected="scale_values power_of_two",
            found=codes.encoding.scale_values,
            help="say power_of_two if the engine reads exponents, or store the scales in f32",
        )


Block = tuple[int | str, ...]


def partner_blocks(subject: Subject, owners: list[int]) -> set[Block]:
    """Find the blocks of those of the buffer families that hold codes."""
    every = (subject.manifest.buffers[owner].encoding for owner in owners)
    return {encoding.block for encoding in every if isinstance(encoding, Scaled)}


def block_of(subject: Subject, site: PieceSite) -> Block | None:
    """Find the block of a piece of codes or scales; None for plain values."""
    match site.buffer.encoding:
        case Scaled(block=block):
            return block
        case Scale(of=name):
            links = find_links(subject, site.buffer_number, name)
            return next(iter(partner_blocks(subject, links.owners)), None)
        case Plain():
            return None


def _mutual(
    path: Path, subject: Subject, number: int, owner: int, links: Links
) -> Iterator[Finding]:
    """The partner must be of the other kind, and name this very buffer."""
    own, other = (subject.manifest.buffers[n] for n in (number, owner))
    wanted = "scale" if own.encoding.kind == "scaled" else "scaled"
    back = back_reference(other)
    if other.encoding.kind != wanted or back is None:
        yield Finding(
            "TS177",
            path,
            f"buffer {other.name!r} has encoding {other.encoding.kind!r}",
            expected=f"encoding {wanted!r}",
            found=other.encoding.kind,
        )
        return
    here, there = links.of_owner(owner)
    names = numbers_of(own.name, here, subject.world)
    named = numbers_of(back, there, subject.world)
    same = split_name(back).texts == split_name(own.name).texts and all(
        np.array_equal(a, b) for a, b in zip(names, named, strict=True)
    )
    if not same:
        yield Finding(
            "TS177",
            path,
            f"buffer {other.name!r} does not name {own.name!r} back",
            expected=own.name,
            found=back,
        )


def back_reference(buffer: BufferFamily) -> str | None:
    """Name the buffer of scales, or of codes, that belongs to this one."""
    match buffer.encoding:
        case Scaled(scale=name) | Scale(of=name):
            return name
        case Plain():
            return None
