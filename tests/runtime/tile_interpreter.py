"""Runs tile tables as a kernel would, tile by tile, and addresses memory by the byte."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.runtime.small_plans import storage_bytes
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.jobs import DTYPES, FORMULA_NAMES, NOWHERE, SLOT, JobOp
from tranship.runtime.quantization import cell_amax, dequantize, quantize
from tranship.runtime.tiles import TileTable

Bytes = NDArray[np.uint8]
Pair = NDArray[np.int64]


class Machine:
    """Memory as arrays of bytes, and the amaxes that two launches share."""

    def __init__(self, buffers: Sequence[Tensor], slot: Tensor, table: TileTable) -> None:
        self.memory = {number: _of(tensor) for number, tensor in enumerate(buffers)}
        self.memory[SLOT] = _of(slot)
        self.table = table
        self.amaxes = torch.zeros(table.amax_places)
        self.writes = {where: np.zeros_like(memory) for where, (memory, _) in self.memory.items()}

    def run(self) -> None:
        """Run both launches; nothing may be written twice."""
        for tile in self.table.tiles:
            if tile["amax_place"] >= 0:
                self._gather_amax(tile)
        for tile in self.table.tiles:
            match JobOp(tile["op"]):
                case JobOp.FILL:
                    kind = _kind(tile["target_dtype"])
                    wanted = torch.full(tile["extent"].tolist(), float(tile["value"])).to(kind)
                    self._write_values(tile, wanted)
                case JobOp.QUANTIZE | JobOp.AMAX:
                    self._by_blocks(tile)
                case _:
                    self._by_elements(tile)
        assert all(count.max(initial=0) <= 1 for count in self.writes.values())

    def _by_elements(self, tile: np.void) -> None:
        kind = _kind(tile["target_dtype"])
        values = torch.zeros(tile["extent"].tolist(), dtype=kind)
        self._assemble(tile, values)
        self._write_values(tile, values)

    def _by_blocks(self, tile: np.void) -> None:
        amax = self._amax(tile)
        if tile["op"] == JobOp.AMAX:
            self._write_scales(tile, amax)
            return
        codes, scales = quantize(
            self._floats(tile),
            tile["block"].tolist(),
            formula=FORMULA_NAMES[int(tile["formula"])],
            code_dtype=_kind(tile["target_dtype"]),
            scale_dtype=_kind(tile["scale_dtype"]),
            origin=tile["phase"].tolist(),
            amax=amax,
        )
        self._write_values(tile, codes)
        self._write_scales(tile, scales)

    def _gather_amax(self, tile: np.void) -> None:
        own = self._given_amax(tile) if tile["amax_count"] else self._own_amax(tile)
        index = self._places(tile, own)
        self.amaxes[index] = torch.maximum(self.amaxes[index], own)

    def _own_amax(self, tile: np.void) -> Tensor:
        return cell_amax(self._floats(tile), tile["block"].tolist(), origin=tile["phase"].tolist())

    def _places(self, tile: np.void, blocks: Tensor) -> Tensor:
        row, column = np.indices(tuple(blocks.shape))
        strides = tile["amax_strides"]
        return torch.from_numpy(tile["amax_place"] + row * strides[0] + column * strides[1])

    def _amax(self, tile: np.void) -> Tensor:
        own = self._own_amax(tile)
        return self.amaxes[self._places(tile, own)] if tile["amax_place"] >= 0 else own

    def _given_amax(self, tile: np.void) -> Tensor:
        amax = torch.zeros_like(self._own_amax(tile))
        for fragment in self._fragments(tile, "amax"):
            place = amax[_slices(fragment["start"], fragment["extent"])]
            place.copy_(torch.maximum(place, self._read(fragment)))
        return amax

    def _floats(self, tile: np.void) -> Tensor:
        values = torch.full(tile["extent"].tolist(), torch.nan)
        self._assemble(tile, values)
        return values

    def _assemble(self, tile: np.void, values: Tensor) -> None:
        covered = torch.zeros(values.shape, dtype=torch.int32)
        for fragment in self._fragments(tile, "fragment"):
            place = _slices(fragment["start"], fragment["extent"])
            covered[place] += 1
            if fragment["scale"] == NOWHERE:
                _set(values[place], self._read(fragment))
            else:
                values[place] = self._dequantized(fragment, values.dtype)
        assert bool((covered == 1).all())

    def _dequantized(self, fragment: np.void, kind: torch.dtype) -> Tensor:
        block, phase = fragment["scale_block"], fragment["scale_phase"]
        counts = (phase + fragment["extent"] - 1) // block + 1
        scales = self._load(
            fragment["scale"],
            fragment["scale_dtype"],
            fragment["scale_offset"],
            counts,
            fragment["scale_strides"],
        )
        codes = self._read(fragment)
        return dequantize(codes, scales, block.tolist(), dtype=kind, origin=phase.tolist())

    def _fragments(self, tile: np.void, kind: str) -> NDArray[np.void]:
        first = int(tile[f"{kind}_first"])
        return self.table.fragments[first : first + int(tile[f"{kind}_count"])]

    def _read(self, fragment: np.void) -> Tensor:
        return self._load(
            fragment["source"],
            fragment["dtype"],
            fragment["offset"],
            fragment["extent"],
            fragment["strides"],
        )

    def _load(self, where: int, dtype: int, offset: int, extent: Pair, strides: Pair) -> Tensor:
        kind = _kind(dtype)
        index = _addresses(kind.itemsize, offset, extent, strides)
        return torch.from_numpy(self._memory(where, kind, index)).view(kind)[..., 0]

    def _memory(self, where: int, kind: torch.dtype, index: Pair) -> Bytes:
        memory, lead = self.memory[int(where)]
        assert index.min(initial=0) >= 0
        return memory[index + lead]

    def _write_values(self, tile: np.void, values: Tensor) -> None:
        inner = values[_slices(tile["inner_start"], tile["inner_extent"])]
        self._store(tile, "target", inner)

    def _write_scales(self, tile: np.void, scales: Tensor) -> None:
        self._store(tile, "scale", scales[_slices(tile["scale_first"], tile["scale_counts"])])

    def _store(self, tile: np.void, what: str, values: Tensor) -> None:
        if not values.numel():
            return
        where = tile["target" if what == "target" else "scale_target"]
        strides, offset = tile[f"{what}_strides"], tile[f"{what}_offset"]
        assert values.dtype == _kind(tile[f"{what}_dtype"])
        index = _addresses(values.itemsize, offset, np.array(values.shape), strides)
        memory, lead = self.memory[int(where)]
        memory[index + lead] = values.contiguous()[..., None].view(torch.uint8).numpy()
        self.writes[int(where)][index + lead] += 1


def _of(tensor: Tensor) -> tuple[Bytes, int]:
    """Return a tensor's storage as bytes, and the place of its first element."""
    return storage_bytes(tensor).numpy(), int(tensor.storage_offset()) * tensor.itemsize


def _kind(number: int) -> torch.dtype:
    return torch_dtype(DTYPES[number])


def _addresses(item: int, offset: int, extent: Pair, strides: Pair) -> Pair:
    row, column = np.indices(tuple(extent.tolist()))
    elements = row * strides[0] + column * strides[1]
    return int(offset) + elements[..., np.newaxis] * item + np.arange(item)


def _set(place: Tensor, values: Tensor) -> None:
    """Convert; equal dtypes keep their bits."""
    if place.dtype == values.dtype:
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[place.itemsize]
        place.view(bits).copy_(values.view(bits))
    else:
        place.copy_(values)


def _slices(start: Pair, extent: Pair) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start.tolist(), extent.tolist(), strict=True))
