"""An FSDP trainer's weights, by plan, against SGLang's own loading of a quantized checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runtime.trainings import verified_plan
from tests.sglang.configs import CONFIGS, checkpoint_sources, checkpoint_tensors
from tests.sglang.load import read_tensors, write_tensors
from tests.sglang.replay import UNWRITTEN, bits
from tests.sglang.test_trace import BOTH_SCRIPTS, pytestmark, run
from tests.sglang.transfers import quantized
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.execute import simulate
from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX
from tranship.schema.codec import load
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Axis, Manifest, Part, Side
from tranship.schema.merge import merge
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    PieceRecord,
    TensorRecord,
    contiguous_strides,
)

__all__ = ["pytestmark"]

Checkpoint = dict[str, Tensor]


def trained_weights(name: str) -> Checkpoint:
    """Return every weight of a configuration as a trainer has it: BF16, whole, random."""
    generator = torch.Generator().manual_seed(7)
    return {
        key: torch.randn(like.shape, generator=generator).bfloat16() * 0.02
        for key, like in checkpoint_tensors(CONFIGS[name]).items()
        if not key.endswith(SCALE_SUFFIX)
    }


def sender(weights: Checkpoint, ranks: int) -> tuple[Manifest, dict[int, Checkpoint]]:
    """Cut every weight along dim 0 with torch.chunk; later ranks may hold less, or nothing."""
    memory: dict[int, Checkpoint] = {rank: {} for rank in range(ranks)}
    buffers: list[BufferRecord] = []
    for name, tensor in weights.items():
        above = 0
        for rank in range(ranks):
            parts = tensor.chunk(ranks)
            shard = parts[rank].contiguous() if rank < len(parts) else tensor[:0]
            memory[rank][name] = shard
            buffers.append(shard_record(rank, name, shard, above))
            above += len(shard)
    records = tuple(sorted(TensorRecord(n, tuple(t.shape)) for n, t in weights.items()))
    axes = (Axis(name="fsdp", size=ranks, stride=1),)
    declared = Declaration(
        Side.SENDER, ranks, tuple(range(ranks)), axes, records, tuple(sorted(buffers))
    )
    return fold(declared), memory


def shard_record(rank: int, name: str, shard: Tensor, above: int) -> BufferRecord:
    """Declare one shard, whose first row is row `above` of the tensor."""
    shape = tuple(shard.shape)
    strides = contiguous_strides(shape)
    zeros, ones = (0,) * len(shape), (1,) * len(shape)
    start = (above, *zeros[1:])
    piece = PieceRecord(name, Part.VALUE, start, shape, ones, 0, strides, zeros)
    record = BufferRecord(rank, name, DType.BF16, shape, strides)
    return replace(record, pieces=(piece,)) if shard.numel() else record


def engine(
    folder: Path, name: str, tp: int, ep: int, checkpoint: Checkpoint
) -> tuple[Manifest, dict[int, Checkpoint]]:
    """Trace every rank of a real engine, and have it load the checkpoint with its own code."""
    given = folder / "checkpoint.safetensors"
    write_tensors(checkpoint, given)
    manifests: list[tuple[str, Manifest]] = []
    loaded: dict[int, Checkpoint] = {}
    for rank in range(tp):
        manifest, output = folder / f"{rank}.json", folder / f"{rank}.safetensors"
        done = run("-c", BOTH_SCRIPTS, name, tp, ep, rank, given, manifest, output)
        assert done.returncode == 0, done.stderr
        manifests.append((manifest.name, load(manifest, Manifest).value))
        loaded[rank] = read_tensors(output)
    return merge(manifests), loaded


def blank(record: BufferRecord) -> Tensor:
    """Memory of a buffer before the first update."""
    memory = torch.empty_strided(record.shape, record.strides, dtype=torch_dtype(record.dtype))
    bits(memory).fill_(UNWRITTEN)
    return memory


@pytest.mark.parametrize(
    ("name", "fsdp", "tp", "ep"),
    [("qwen3", 3, 2, 1), ("qwen3_moe", 2, 2, 1), ("qwen3_moe", 3, 2, 2), ("qwen3_tied", 2, 4, 1)],
)
def test_the_plan_delivers_what_sglang_loads(
    tmp_path: Path, name: str, fsdp: int, tp: int, ep: int
) -> None:
    weights = trained_weights(name)
    theirs, loaded = engine(
        tmp_path, name, tp, ep, quantized(weights, checkpoint_sources(CONFIGS[name]))
    )
    ours, held = sender(weights, fsdp)
    plan = verified_plan(ours, theirs)
    records = [b for b in expand(theirs).buffers if b.role.kind == "transfer"]
    received: dict[int, Checkpoint] = {rank: {} for rank in range(tp)}
    for record in records:
        received[record.rank][record.name] = blank(record)
    simulate(plan, held, received, {})
    for record in records:
        got, wanted = received[record.rank][record.name], loaded[record.rank][record.name]
        assert torch.equal(bits(got), bits(wanted)), (record.rank, record.name)
