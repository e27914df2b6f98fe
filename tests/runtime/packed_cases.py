"""Transfers from BF16 to FP8 with packed scales, and what must come of them.

The oracle knows nothing of tranship: it quantizes every tensor on a grid that starts where a
receiver rank's part does, and packs scales word by word, as DeepGEMM describes its layout.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tests.properties.dense import quantize
from tests.runtime.kernel_steps import code_multiples
from tests.runtime.live_models import SENTINEL, model_of, place
from tests.runtime.local_jobs import Result, at_once
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import Transport, World
from tranship.schema.check import check_manifest
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Kind, Manifest, Side
from tranship.schema.plan import TransferPlan
from tranship.schema.testing import Encoding
from tranship.schema.transfer import Options

Json = dict[str, Any]
BLOCK = 128
PACKED = "deepgemm_mn_major_ue8m0"
CODES, SCALES = "proj.weight", "proj.weight_scale_inv"
EXPONENTS = Encoding(DType.F8E4M3FN, (BLOCK, BLOCK), DType.F8E8M0FNU)


@dataclass(frozen=True)
class Case:
    """Tensors `e0.t0`, `e0.t1` and so on, which receivers hold fused, and experts stacked.

    `rows` are those of every tensor on one receiver rank. Without `experts` the engine's buffers
    have two dims. `receivers` ranks cut dim `tensor_dim`; `senders` ranks, one or two, cut
    dim `sender_dim` after `cut` elements. With `exact`, quantizing rounds nothing if all grids
    start at multiples of 128: triton's interpreter rounds otherwise than a GPU.
    """

    rows: tuple[int, ...]
    columns: int
    experts: int = 0
    receivers: int = 1
    tensor_dim: int = 0
    senders: int = 1
    sender_dim: int = 0
    cut: int = 1
    staging: int = 1 << 20
    exact: bool = False

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shape of every tensor of one expert."""
        grown = [1, 1]
        grown[self.tensor_dim] = self.receivers
        return [(rows * grown[0], self.columns * grown[1]) for rows in self.rows]

    @property
    def numbers(self) -> range:
        """The numbers of the tensors."""
        return range(len(self.rows))

    @property
    def stack(self) -> list[int]:
        """The dim of experts, if there is one."""
        return [self.experts] if self.experts else []

    @property
    def indices(self) -> Json:
        return {"expert": f"0..{max(self.experts, 1) - 1}"}

    @cached_property
    def plan(self) -> TransferPlan:
        """The compiled plan; it and the manifests have been checked and verified."""
        options = Options(staging_bytes=self.staging)
        inputs = (self.sender, self.receiver, None, None)
        assert check_manifest(self.sender) + check_manifest(self.receiver) == ()
        plan = compile_transfer(*inputs, options)
        found = verify(plan, *inputs, digests=digests_of(*inputs, options), options=options)
        assert found == ()
        return plan

    @cached_property
    def sender(self) -> Manifest:
        return self.manifest("sender", "fsdp", self.senders, self._sent())

    @cached_property
    def receiver(self) -> Manifest:
        return self.manifest("receiver", "tp", self.receivers, self.received())

    def manifest(self, side: str, axis: str, size: int, buffers: list[Json]) -> Manifest:
        """Declare a side with its ranks along one axis."""
        tensors = [
            {"name": f"e{{expert}}.t{n}", "indices": self.indices, "shape": list(shape)}
            for n, shape in enumerate(self.shapes)
        ]
        document = {
            "format": "tranship.manifest/1",
            "side": side,
            "world_size": size,
            "axes": [{"name": axis, "size": size, "stride": 1}],
            "tensors": tensors,
            "buffers": buffers,
        }
        return Manifest.model_validate(document, strict=False)

    def _sent(self) -> list[Json]:
        buffers: list[Json] = []
        for n, shape in enumerate(self.shapes):
            name, start, extent = f"e{{expert}}.t{n}", list[Any]([0, 0]), list[Any](shape)
            if self.senders == 2:
                size = shape[self.sender_dim]
                cut = min(self.cut, size - 1)
                extent[self.sender_dim] = f"{cut} + fsdp * ({size} - 2 * {cut})"
                start[self.sender_dim] = f"fsdp * {cut}"
            piece = {"tensor": name, "start": start, "extent": extent}
            buffers.append(
                {"name": name, "indices": self.indices, "dtype": "bf16", "shape": extent}
                | {"pieces": [piece]}
            )
        return buffers

    def received(self) -> list[Json]:
        """The receiver's two buffers: codes and scales."""
        words = -(-self.columns // (4 * BLOCK))
        blocks, per_row = -(-sum(self.rows) // BLOCK), -(-self.columns // BLOCK)
        codes, scales = list[Json](), list[Json]()
        first = 0
        for n, rows in enumerate(self.rows):
            origin: list[Any] = [0, 0]
            origin[self.tensor_dim] = f"tp * {(rows, self.columns)[self.tensor_dim]}"
            common = {"tensor": f"e{{expert}}.t{n}", "origin": origin, "indices": self.indices}
            stacked = f"expert * {sum(self.rows) * self.columns} + {first * self.columns}"
            codes.append(
                common | {"start": origin, "extent": [rows, self.columns], "offset": stacked}
            )
            stacked = f"expert * {blocks * 4 * words} + {first // BLOCK * 4 * words}"
            counts = [-(-rows // BLOCK), per_row]
            scales.append(
                common | {"start": [0, 0], "extent": counts, "offset": stacked, "part": "scale"}
            )
            first += rows
        padding = 4 * words - per_row
        fill: Json = {"offset": per_row, "value": 0, "sizes": [*self.stack, blocks, padding]}
        fill["strides"] = [*([blocks * 4 * words] if self.stack else []), 4 * words, 1]
        encoding = {"kind": "scaled", "block": [BLOCK, BLOCK], "scale": SCALES}
        shape = [*self.stack, sum(self.rows), self.columns]
        return [
            {"name": CODES, "dtype": "f8e4m3fn", "shape": shape, "pieces": codes}
            | {"encoding": encoding | {"scale_values": "power_of_two"}},
            {"name": SCALES, "dtype": "f8e8m0fnu", "layout": PACKED, "pieces": scales}
            | {"shape": [*self.stack, blocks, 4 * words], "fills": [fill] if padding else []}
            | {"encoding": {"kind": "scale", "of": CODES}},
        ]

    # --- values ---------------------------------------------------------------------------------

    def dense(self, version: int) -> dict[str, Tensor]:
        """All logical tensors of a version; blocks have magnitudes of their own."""
        generator = torch.Generator().manual_seed(version)
        found: dict[str, Tensor] = {}
        for expert, (n, shape) in product(range(max(self.experts, 1)), enumerate(self.shapes)):
            if self.exact:
                values = code_multiples(shape, (BLOCK, BLOCK), seed=version * 100 + expert + 7 * n)
                found[f"e{expert}.t{n}"] = values.bfloat16()
                continue
            grid = [-(-size // 100) for size in shape]
            powers = torch.randint(-12, 12, grid, generator=generator).float().exp2()
            wide = powers.repeat_interleave(100, 0).repeat_interleave(100, 1)
            values = torch.randn(shape, generator=generator) * wide[: shape[0], : shape[1]]
            found[f"e{expert}.t{n}"] = values.bfloat16()
        return found

    def train(self, model: nn.Module, rank: int, version: int) -> None:
        """Put a version of the weights into a sender's model, in place."""
        with torch.no_grad():
            for name, value in self.dense(version).items():
                size = value.shape[self.sender_dim]
                cut = min(self.cut, size - 1) if self.senders == 2 else size
                first, stop = ((0, cut), (cut, size))[rank]
                model.get_parameter(name).copy_(value.narrow(self.sender_dim, first, stop - first))

    def expected(self, rank: int, version: int) -> tuple[Tensor, Tensor]:
        """Codes, and the packed scales that belong to them, as receiver rank `rank` holds them."""
        dense = self.dense(version)
        codes, scales = list[Tensor](), list[Tensor]()
        for expert in range(max(self.experts, 1)):
            found = [self._quantized(n, dense[f"e{expert}.t{n}"], rank) for n in self.numbers]
            codes.append(torch.cat([code for code, _ in found]))
            scales.append(packed(torch.cat([scale for _, scale in found]), sum(self.rows)))
        if self.experts:
            return torch.stack(codes), torch.stack(scales)
        return codes[0], scales[0]

    def _quantized(self, number: int, tensor: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Quantize from the rank's part on: its last block may reach into the next part."""
        rows, columns = self.rows[number], self.columns
        size = (rows, columns)[self.tensor_dim]
        rest = tensor.narrow(self.tensor_dim, rank * size, (self.receivers - rank) * size)
        codes, scales = quantize(rest, EXPONENTS, "power_of_two")
        blocks = -(-rows // BLOCK), -(-columns // BLOCK)
        return codes[:rows, :columns], scales[: blocks[0], : blocks[1]]


def packed(scales: Tensor, rows: int) -> Tensor:
    """Pack float32 powers of two `[blocks of rows, blocks]`: int32 `[rows, ceil(blocks / 4)]`."""
    exponents: list[list[int]] = [[int(torch.log2(scale)) + 127 for scale in row] for row in scales]
    words = [
        [
            sum(byte << (8 * place) for place, byte in enumerate(exponents[row // 128][k : k + 4]))
            for k in range(0, scales.shape[1], 4)
        ]
        for row in range(rows)
    ]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def engine_scales(case: Case, device: torch.device | None = None) -> Tensor:
    """Allocate packed scales as DeepGEMM does: columns of words, at multiples of 16 bytes."""
    rows, words = sum(case.rows), -(-case.columns // 512)
    column = (rows + 3) // 4 * 4
    shape, strides = [rows, words], [1, column]
    if case.experts:
        shape, strides = [case.experts, *shape], [column * words, *strides]
    tensor = torch.empty_strided(shape, strides, dtype=torch.int32, device=device)
    whole_storage(tensor).fill_(SENTINEL)
    return tensor


def whole_storage(tensor: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


# --- sessions -----------------------------------------------------------------------------------


@dataclass
class Job:
    """A case with all its ranks bound."""

    case: Case
    trainers: list[nn.Module]
    engines: list[nn.Module]
    sessions: list[Sender | Receiver]

    def step(self, version: int) -> list[Result]:
        """Train, publish and receive."""
        for rank, model in enumerate(self.trainers):
            self.case.train(model, rank, version)
        calls = [
            partial(own.publish if isinstance(own, Sender) else own.receive, version)
            for own in self.sessions
        ]
        return at_once(calls)

    def assert_whole(self, version: int) -> None:
        """Compare every byte that engines hold; what lies between columns of scales stays."""
        results = self.step(version)
        assert [result for result in results if isinstance(result, BaseException)] == []
        for rank, model in enumerate(self.engines):
            codes, words = self.case.expected(rank, version)
            found = model.get_parameter(CODES).data
            assert torch.equal(found.view(torch.uint8), codes.view(torch.uint8))
            memory = engine_scales(self.case)
            memory.copy_(words)
            held = model.get_parameter(SCALES).data
            assert torch.equal(whole_storage(held), whole_storage(memory))


Ends = Callable[[World], Sequence[Transport]]


def locally(world: World) -> Sequence[Transport]:
    """Connect all ranks in this process."""
    senders, receivers = connect_locally(world, timeout=30)
    return [*senders, *receivers]


def bound(case: Case, ends: Ends = locally) -> Job:
    """Bind all ranks at once."""
    world = World(senders=case.senders, receivers=case.receivers)
    plan, connected = case.plan, ends(world)
    trainers = [model_of(case.sender, rank) for rank in range(case.senders)]
    engines = [engine(case, rank) for rank in range(case.receivers)]
    models = [*trainers, *engines]

    def bind(member: int) -> Sender | Receiver:
        (side, rank), live = world.seat(member), live_tensors(models[member])
        if side is Side.SENDER:
            return Sender.bind(plan, case.sender, live, connected[member], rank)
        return Receiver.bind(plan, case.receiver, live, connected[member], rank)

    with ThreadPoolExecutor(len(models)) as pool:
        return Job(case, trainers, engines, list(pool.map(bind, range(len(models)))))


def engine(case: Case, rank: int) -> nn.Module:
    """Build the engine of a rank."""
    model = model_of(case.receiver, rank)
    place(model, SCALES, Kind.PARAMETER, engine_scales(case))
    return model


def with_scales(case: Case, **fields: Any) -> Manifest:
    """Change what the receiver declares of its scales."""
    codes, scales = case.received()
    return case.manifest("receiver", "tp", case.receivers, [codes, scales | fields])


def with_codes(case: Case, **fields: Any) -> Manifest:
    """Change what the receiver declares of its codes."""
    codes, scales = case.received()
    return case.manifest("receiver", "tp", case.receivers, [codes | fields, scales])
