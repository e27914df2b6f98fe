"""The dense oracle: whole logical tensors, quantized whole, in plain torch."""

import torch
from torch import Tensor

from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.records import BlockShape
from tranship.schema.testing import UNUSED_TENSOR, Case, Encoding

LARGEST = 448.0
FLOOR = 1e-4

_TORCH = {
    DType.F32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.F8E4M3FN: torch.float8_e4m3fn,
    DType.F8E8M0FNU: torch.float8_e8m0fnu,
}


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch type of a declared dtype."""
    return _TORCH[dtype]


def spread(scales: Tensor, block: BlockShape, shape: torch.Size) -> Tensor:
    """Repeat every scale over its block, cropped to `shape`."""
    for dim, (size, entry) in enumerate(zip(shape, block, strict=True)):
        width = max(size, 1) if entry == "all" else int(entry)
        scales = scales.repeat_interleave(width, dim=dim).narrow(dim, 0, size)
    return scales


def block_amax(values: Tensor, block: BlockShape) -> Tensor:
    """Largest magnitude of every block, dim by dim."""
    result = values.float().abs()
    for dim, (size, entry) in enumerate(zip(values.shape, block, strict=True)):
        width = max(size, 1) if entry == "all" else int(entry)
        parts: list[Tensor] = []
        for first in range(0, size, width):
            part = result.narrow(dim, first, min(width, size - first))
            parts.append(part.amax(dim=dim, keepdim=True))
        result = torch.cat(parts, dim=dim) if parts else result
    return result


def quantize(values: Tensor, encoding: Encoding, formula: str) -> tuple[Tensor, Tensor]:
    """Codes and scales of a whole tensor, as torch CUDA computes them eagerly."""
    assert encoding.block is not None
    if values.numel() == 0:
        return values.to(torch.float8_e4m3fn), torch.zeros_like(values, dtype=torch.float32)
    x = values.float()
    amax = block_amax(values, encoding.block).clamp(min=FLOOR)
    scales = amax * torch.tensor(1.0 / LARGEST, dtype=torch.float32)
    if formula == "power_of_two" or encoding.scale_dtype is DType.F8E8M0FNU:
        scales = torch.exp2(torch.ceil(torch.log2(scales.double()))).float()
    wide = spread(scales, encoding.block, values.shape)
    by_reciprocal = formula == "reciprocal" and encoding.scale_dtype is not DType.F8E8M0FNU
    scaled = x * (1.0 / wide) if by_reciprocal else x / wide
    codes = scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes, scales


class Dense:
    """Every logical tensor as the sender's memory means it, and as the receiver's must hold it."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        self._values: dict[tuple[str, Side], Tensor] = {
            (UNUSED_TENSOR, Side.SENDER): torch.ones(4, dtype=torch.bfloat16)
        }
        self._scales: dict[tuple[str, Side], Tensor] = {}
        drawn: dict[tuple[str, int], Tensor] = {}
        for number, tensor in enumerate(case.tensors):
            for layer in range(case.layers):
                values = torch.randn(tensor.shape, generator=generator) * 10.0 ** float(
                    torch.randint(-3, 3, (), generator=generator)
                )
                values = drawn.setdefault((tensor.tied_to or tensor.name, layer), values)
                self._hold(case, tensor.fqn(layer), number, values)

    def _hold(self, case: Case, name: str, number: int, values: Tensor) -> None:
        sender = case.sender.holdings[number].encoding
        receiver = case.receiver.holdings[number].encoding
        held = values.to(_TORCH[sender.dtype]) if sender.block is None else values.bfloat16()
        meant = held
        if sender.block is not None:
            codes, scales = quantize(held, sender, case.formula)
            self._values[name, Side.SENDER], self._scales[name, Side.SENDER] = codes, scales
            meant = codes.float() * spread(scales, sender.block, codes.shape)
        else:
            self._values[name, Side.SENDER] = held
        if receiver.block is None:
            self._values[name, Side.RECEIVER] = meant.to(_TORCH[receiver.dtype])
        elif receiver == sender:
            self._values[name, Side.RECEIVER] = self._values[name, Side.SENDER]
            self._scales[name, Side.RECEIVER] = self._scales[name, Side.SENDER]
        else:
            codes, scales = quantize(meant, receiver, case.formula)
            self._values[name, Side.RECEIVER] = codes
            self._scales[name, Side.RECEIVER] = scales.to(_TORCH[receiver.scale_dtype])

    def values(self, name: str, side: Side) -> Tensor:
        """Values or codes."""
        return self._values[name, side]

    def scales(self, name: str, side: Side) -> Tensor:
        """One scale per block."""
        return self._scales[name, side]
