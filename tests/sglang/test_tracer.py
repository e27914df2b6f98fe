"""The tracer against the loaders that it watches: replaying a trace gives the loader's memory."""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sglang.replay import bits, put, region
from tests.sglang.views import views
from tranship.runtime.frameworks.tracing.tracer import Trace, TraceError, Tracer, trace_load

Tensors = Mapping[str, torch.Tensor]
Load = Callable[[torch.Tensor, Tensors], object]
"""Loads a checkpoint into one buffer."""

SHAPES = {"a": (4, 6), "b": (2, 6), "row": (6,), "one": (1,)}


def checkpoint(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()
    }


def trace_of(load: Load, x: torch.Tensor, of: Tensors) -> Trace:
    """Trace a load into a buffer `x`, on meta tensors like the given ones."""
    meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    tensors = {name: tensor.to("meta") for name, tensor in of.items()}
    with Tracer({"x": meta}, tensors) as tracer:
        load(meta, tensors)
    return tracer.trace()


def check_replay(load: Load, x: torch.Tensor, of: Tensors) -> None:
    """Compare a load with the replay of its trace, each from a buffer of ones."""
    expected, found = torch.ones_like(x), torch.ones_like(x)
    load(expected, of)
    trace = trace_of(load, x, of)
    for write in trace.writes:
        put(found, of[write.source], write.box)
    for filling in trace.fillings:
        view = filling.view
        region(found, view.offset, view.sizes, view.strides).fill_(filling.value)
    assert torch.equal(bits(found), bits(expected))


def narrow(x: torch.Tensor, of: Tensors) -> None:
    x[:4].copy_(of["a"])
    x.narrow(0, 4, 2).copy_(of["b"])


def cat(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(torch.cat([of["a"], torch.empty(0, device=x.device), of["b"]], dim=0))


def stack(x: torch.Tensor, of: Tensors) -> None:
    x[1, :4].copy_(of["a"])
    x[0, 2:4, :].copy_(of["b"])


def columns(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"][:, 2:5])


def transpose(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"].t().contiguous())


def clone_of_transpose(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"].t().clone()[1:4])


def temporary(x: torch.Tensor, of: Tensors) -> None:
    rows = torch.empty((6, 6), dtype=x.dtype, device=x.device)
    rows[::2][:2].copy_(of["b"])
    rows[1::2].copy_(of["a"][1:])
    rows[4] = of["row"]
    x.copy_(rows)


def interleave(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(torch.cat([of["a"].reshape(2, 2, 6), of["b"].unsqueeze(1)], dim=1).flatten(0, 1))


def flat(x: torch.Tensor, of: Tensors) -> None:
    x.view(-1)[3:17].copy_(of["a"].view(-1)[5:19])


def broadcast(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["row"])


def item_to_many(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["one"])


def pad(x: torch.Tensor, of: Tensors) -> None:
    x[:4].copy_(of["a"])
    x[4:].fill_(0)
    x[6:].zero_()  # nothing


def clears_before_copying(x: torch.Tensor, of: Tensors) -> None:
    x[:4].copy_(of["a"].clone().fill_(2))
    x[4:].copy_(of["b"].zero_())


def bytewise(x: torch.Tensor, of: Tensors) -> None:
    x.view(torch.int16).copy_(of["a"].view(torch.int16))


@pytest.mark.parametrize(
    ("load", "shape"),
    [
        (narrow, (6, 6)),
        (cat, (6, 6)),
        (stack, (2, 5, 6)),
        (columns, (4, 3)),
        (transpose, (6, 4)),
        (clone_of_transpose, (3, 4)),
        (temporary, (6, 6)),
        (interleave, (6, 6)),
        (flat, (4, 6)),
        (broadcast, (3, 6)),
        (item_to_many, (3,)),
        (pad, (6, 6)),
        (bytewise, (4, 6)),
        (clears_before_copying, (6, 6)),
    ],
)
def test_replaying_a_trace_gives_the_loaders_memory(load: Load, shape: tuple[int, ...]):
    check_replay(load, torch.empty(shape, dtype=torch.bfloat16), checkpoint(torch.bfloat16))


def test_a_buffer_may_be_transposed_in_memory_and_wider_than_its_source():
    def load(x: torch.Tensor, of: Tensors) -> None:
        x.copy_(of["a"].to(torch.float32))

    check_replay(load, torch.empty((6, 4), dtype=torch.float32).t(), checkpoint(torch.bfloat16))


@given(st.data())
def test_views_of_what_passed_through_temporaries_are_replayed(data: st.DataObject):
    of = checkpoint(torch.bfloat16)
    numbered = torch.arange(24 + 12)
    first = data.draw(views(numbered[:24].view(4, 6)))
    second = data.draw(views(numbered[24:].view(2, 6)))
    joined = data.draw(views(torch.cat([first.reshape(-1), second.reshape(-1)])))
    layouts = [(each.shape, each.stride(), each.storage_offset()) for each in (first, second)]
    layouts[1] = (*layouts[1][:2], layouts[1][2] - 24)

    def load(x: torch.Tensor, of: Tensors) -> None:
        parts = [
            of[name].as_strided(*layout).reshape(-1)
            for name, layout in zip("ab", layouts, strict=True)
        ]
        x.copy_(torch.cat(parts).as_strided(joined.shape, joined.stride(), joined.storage_offset()))

    check_replay(load, torch.empty(joined.shape, dtype=torch.bfloat16), of)


def computes(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"] * 2)


def computes_in_place(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"].clone().mul_(2))


def computes_into_the_buffer(x: torch.Tensor, of: Tensors) -> None:
    torch.mul(of["a"], 2, out=x)


def changes_the_checkpoint(x: torch.Tensor, of: Tensors) -> None:
    of["a"][1:].zero_()


def fills_and_computes(x: torch.Tensor, of: Tensors) -> None:
    copied = of["a"].clone().fill_(1)
    x[:4].copy_(copied.mul_(3))


def fills_twice(x: torch.Tensor, of: Tensors) -> None:
    copied = of["a"].clone().fill_(1)
    copied[1:].fill_(2)
    x[:4].copy_(copied)


def fills_one_row_again_and_again(x: torch.Tensor, of: Tensors) -> None:
    copied = of["a"].clone()
    copied[:1].expand(4, 6).fill_(1)
    x[:4].copy_(copied)


def fills_a_part_before_copying(x: torch.Tensor, of: Tensors) -> None:
    copied = torch.zeros_like(of["a"])
    copied.zero_()
    copied[1:].copy_(of["a"][1:])
    x[:4].copy_(copied)


def changes_the_buffer(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"])
    x.mul_(2)


def rounds_on_the_way(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"].to(torch.float8_e4m3fn).to(torch.bfloat16))


def reads_other_bytes(x: torch.Tensor, of: Tensors) -> None:
    x.copy_(of["a"].view(torch.int16))


def pads_a_temporary(x: torch.Tensor, of: Tensors) -> None:
    rows = torch.zeros((4, 6), dtype=x.dtype, device=x.device)
    rows[:2].copy_(of["b"])
    x.copy_(rows)


def overwrites_a_temporary(x: torch.Tensor, of: Tensors) -> None:
    rows = of["a"].clone()
    rows[:2].copy_(of["b"])
    x.copy_(rows)


def fills_with_an_unknown_value(x: torch.Tensor, of: Tensors) -> None:
    x.fill_(of["one"][0])


def copies_itself(x: torch.Tensor, of: Tensors) -> None:
    x[:2].copy_(x[2:])


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (computes, "computed by aten::mul of a"),
        (computes_in_place, "computed by aten::mul_"),
        (computes_into_the_buffer, "aten::mul changes x"),
        (changes_the_checkpoint, "a is filled"),
        (fills_and_computes, "computed by aten::mul_"),
        (fills_twice, "computed by fill_"),
        (fills_one_row_again_and_again, "computed by fill_"),
        (fills_a_part_before_copying, "computed by fill_"),
        (changes_the_buffer, "aten::mul_ changes x"),
        (rounds_on_the_way, "a is rounded"),
        (reads_other_bytes, "reinterpreted bytes of a"),
        (pads_a_temporary, "where no checkpoint tensor was put"),
        (overwrites_a_temporary, "on top of another"),
        (fills_with_an_unknown_value, "x is filled"),
        (copies_itself, "x is written from x"),
    ],
)
def test_what_is_no_copy_is_refused(load: Load, reason: str):
    of = checkpoint(torch.bfloat16)
    with pytest.raises(TraceError, match=reason):
        trace_of(load, torch.empty((4, 6), dtype=torch.bfloat16), of)


def test_tensors_from_outside_are_refused():
    x, other, of = (torch.empty(6, device="meta") for _ in range(3))
    with Tracer({"x": x}, {"of": of}):
        with pytest.raises(TraceError, match="x is written from a tensor that is neither"):
            x.copy_(other)
        with pytest.raises(TraceError, match="of is copied into a tensor that is neither"):
            other.copy_(of)


def test_buffers_that_share_memory_are_refused():
    whole = torch.empty(6, device="meta")
    with pytest.raises(TraceError, match="half shares its storage with whole"):
        Tracer({"whole": whole, "half": whole[:3]}, {})


def test_places_count_from_a_buffer_that_starts_inside_its_storage():
    x, of = torch.empty(10, device="meta")[4:], torch.empty(2, device="meta")
    with Tracer({"x": x}, {"of": of}) as tracer:
        x[1:3].copy_(of)
        x[3:].fill_(0)
    [write], [filling] = tracer.writes, tracer.fillings
    assert (write.box.offset, filling.view.offset) == (1, 3)


class Moving(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(6, device="meta"))

    def load_weights(self, weights: object) -> None:
        self.weight.data = torch.empty(6, device="meta")


def test_a_parameter_that_gets_new_memory_is_refused():
    with pytest.raises(TraceError, match="other memory to weight"):
        trace_load(Moving(), {})
