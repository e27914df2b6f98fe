"""Scales that are declared as DeepGEMM reads them stay those of their blocks."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.cli.golden import GOLDEN
from tranship.runtime.frameworks.tracing.deepgemm import as_deepgemm_reads
from tranship.runtime.frameworks.tracing.request import DeepGemm
from tranship.schema.check import check_manifest
from tranship.schema.codec import load
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Part, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    PieceRecord,
    contiguous_strides,
)

TRACED = sorted(path.stem for path in (GOLDEN / "sglang").glob("*-fp8-*.json"))


def declared(title: str) -> Declaration:
    return expand(load(GOLDEN / "sglang" / f"{title}.json", Manifest).value)


def buffers(declaration: Declaration) -> dict[tuple[int, str], BufferRecord]:
    return {(record.rank, record.name): record for record in declaration.buffers}


def scales_in(record: BufferRecord) -> Tensor:
    """Number the elements of all pieces as torch's strides place them; -1 is what no piece has."""
    memory = torch.full((torch.Size(record.shape).numel(),), -1)
    for piece in record.pieces:
        tensor = sum(map(ord, piece.tensor)) << 20
        indices = [
            [begin + step * place for place in range(extent)]
            for begin, step, extent in zip(piece.start, piece.step, piece.extent, strict=True)
        ]
        numbers = torch.tensor([hash((tensor, *at)) >> 8 & 0x7FFFFFFF for at in product(*indices)])
        view = memory.as_strided(piece.extent, piece.strides, piece.offset)
        view.copy_(numbers.view(piece.extent))
    return memory.view(record.shape)


@pytest.mark.parametrize("title", TRACED)
def test_packed_scales_lie_where_the_layout_needs_them(title: str) -> None:
    before = declared(title)
    scaled = {b.name: b.encoding.scale for b in before.buffers if b.encoding.kind == "scaled"}
    codes = set(sorted(scaled)[::2])
    after = as_deepgemm_reads(before, "packed", codes)
    assert check_manifest(fold(after)) == ()
    now = buffers(after)
    packed = {scaled[name] for name in codes}
    for key, record in buffers(before).items():
        if record.name in packed:
            own = scales_in(now[key])
            assert torch.equal(own[..., : record.shape[-1]], scales_in(record))
            assert (own[..., record.shape[-1] :] == -1).all()
        elif record.name in codes:
            assert now[key].encoding.scale_values == "power_of_two"
        else:
            assert now[key] == record


def test_powers_of_two_are_of_all_codes_and_nothing_else_changes() -> None:
    before = declared("deepseek_v3-fp8-tp2-ep2")
    after = as_deepgemm_reads(before, "power_of_two", ())
    changed = [
        (own, other)
        for own, other in zip(before.buffers, after.buffers, strict=True)
        if own != other
    ]
    assert {own.name for own, _ in changed} == {
        own.name for own in before.buffers if own.encoding.kind == "scaled"
    }
    for own, other in changed:
        assert replace(own.encoding, scale_values="power_of_two") == other.encoding
        assert replace(own, encoding=other.encoding) == other


@pytest.mark.parametrize(
    ("title", "form"), [("qwen3-fp8-tp1-ep1", "packed"), ("qwen3-bf16-tp1-ep1", "power_of_two")]
)
def test_that_there_is_nothing_to_read_is_told(title: str, form: DeepGemm) -> None:
    with pytest.raises(DiagnosticError, match="TS859"):
        as_deepgemm_reads(declared(title), form, {"lm_head.weight"})


def test_pieces_and_fills_move_with_their_rows() -> None:
    def piece(expert: str, columns: int, offset: int, step: int) -> PieceRecord:
        box = ((0, 0), (2, columns), (1, 1))
        return PieceRecord(expert, Part.SCALE, *box, offset, (step, 1), (0, 0))

    def held(name: str, block: tuple[int, int], layout: str = "row_major") -> list[BufferRecord]:
        shape = (2, 130, 600)
        codes = EncodingRecord("scaled", block, f"{name}.scale", "any")
        sizes = (2, 2, 5)
        return [
            BufferRecord(
                0,
                name,
                DType.F8E4M3FN,
                shape,
                contiguous_strides(shape),
                encoding=codes,
                layout=layout,
            ),
            BufferRecord(
                0,
                f"{name}.scale",
                DType.F32,
                sizes,
                contiguous_strides(sizes),
                encoding=EncodingRecord("scale", of=name),
                pieces=(piece("a", 5, 0, 5), piece("b", 4, 10, 5)),
                fills=(FillRecord(14, (2,), (5,), 0),),
            ),
        ]

    others = [*held("rows", (1, 128)), *held("opaque", (128, 128), "engine_post_processed")]
    before = Declaration(
        Side.RECEIVER, 1, (0,), (), (), tuple(sorted([*held("w", (128, 128)), *others]))
    )
    after = buffers(as_deepgemm_reads(before, "packed", {"w", "rows", "opaque"}))
    for record in others:
        assert after[0, record.name] == record
    scales = after[0, "w.scale"]
    assert (scales.dtype, scales.shape) == (DType.F8E8M0FNU, (2, 2, 8))
    assert scales.pieces == (piece("a", 5, 0, 8), piece("b", 4, 16, 8))
    assert scales.fills == (
        FillRecord(5, (2, 2, 3), (16, 8, 1), 0),
        FillRecord(20, (2,), (8,), 0),
    )
