"""What a box of a whole tensor holds of checkpoint tensors, against cutting the tensor itself."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.megatron.cases import CASES
from tests.sglang.replay import put, region
from tranship.runtime.frameworks.megatron.keys import keys_of
from tranship.runtime.frameworks.megatron.sharding import Shard
from tranship.runtime.frameworks.megatron.whole import Whole, padding_of, pieces_of, read_whole
from tranship.schema.records import BufferRecord, contiguous_strides

NAMES = ["dense", "one_group", "experts", "biases", "latent"]


@cache
def whole_of(name: str) -> tuple[Whole, dict[str, Tensor]]:
    """A case's whole model, and its tensors with a different value in every element."""
    with TemporaryDirectory() as folder:
        whole = read_whole(CASES[name].whole(Path(folder)), {})
    tensors: dict[str, Tensor] = {}
    first = 1
    for record in whole.tensors.values():
        count = torch.Size(record.shape).numel()
        tensors[record.name] = torch.arange(first, first + count).reshape(record.shape)
        first += count
    return whole, tensors


def filled(record: BufferRecord, tensors: dict[str, Tensor]) -> Tensor:
    """The whole buffer: what its pieces say, and 0 elsewhere."""
    buffer = torch.zeros(record.shape, dtype=torch.int64)
    for piece in record.pieces:
        put(buffer, tensors[piece.tensor], piece)
    return buffer


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pieces_of_a_box_are_what_a_slice_holds(data: st.DataObject) -> None:
    whole, tensors = whole_of(data.draw(st.sampled_from(NAMES)))
    record = whole.buffers[data.draw(st.sampled_from(sorted(whole.buffers)))]
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in record.shape]
    cut = filled(record, tensors)[tuple(slice(first, end) for first, end in ends)]
    start, extent = tuple(first for first, _ in ends), tuple(cut.shape)
    # The rank's tensor is larger than the shard, which begins at its fourth element.
    strides = tuple(2 * stride for stride in contiguous_strides(extent))
    memory = torch.zeros(4 + 2 * cut.numel(), dtype=torch.int64)
    shard = Shard("", (), (), record.shape, start, extent, 4, strides, padded=False)
    for piece in pieces_of(shard, record, whole, strides):
        place = region(memory, piece.offset, piece.extent, piece.strides)
        assert not place.any()
        put(memory, tensors[piece.tensor], piece)
    assert torch.equal(region(memory, 4, extent, strides), cut)
    assert memory.count_nonzero() == cut.count_nonzero()


@pytest.mark.parametrize(("start", "rows"), [(0, 60), (56, 56), (96, 16), (100, 12), (104, 40)])
def test_padding_begins_behind_the_last_row_of_the_vocabulary(start: int, rows: int) -> None:
    whole, _ = whole_of("dense")
    record = whole.buffers["output_layer.weight"]
    shard = Shard("", (), (), (144, 32), (start, 0), (rows, 32), 0, (32, 1), padded=True)
    pieces = list(pieces_of(shard, record, whole, (32, 1)))
    padding = padding_of(shard, record)
    held = max(min(100 - start, rows), 0)
    assert [piece.extent[0] for piece in pieces] == [held] * (held > 0)
    assert (padding.sizes[0] if padding else 0) == rows - held
    assert padding is None or padding.offset == 32 * held


def test_names_are_found_by_their_keys_and_numbers() -> None:
    names = [
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
        "decoder.layers.1.pre_mlp_layernorm.weight",
        *(f"decoder.layers.1.mlp.experts.linear_fc1.weight{number}" for number in range(12)),
        "output_layer.weight",
    ]
    keys = keys_of(names, {"head.weight": "output_layer.weight"})
    experts = "mlp.experts.experts.linear_fc1.weight"
    assert keys.find(f"decoder.layers.{experts}", (1, 11)) == names[13]
    assert keys.find(f"decoder.layers.1.{experts}", (2,)) == names[4]
    assert keys.find(f"decoder.layers.{experts}", (0, 2)) is None
    assert keys.find("decoder.layers.mlp.linear_fc1.layer_norm_weight", (0,)) == names[0]
    assert keys.find("decoder.layers.mlp.linear_fc1.layer_norm_weight", (1,)) == names[1]
    assert keys.find("head.weight", ()) == names[-1]
    assert keys.find("overhead.weight", ()) is None
    assert keys.counts(f"decoder.layers.1.{experts}", (2,)) == (12,)
    assert keys.close("decoder.layers.1.mlp.experts.linear_fc1.wait", (2,)) == (names[4],)
