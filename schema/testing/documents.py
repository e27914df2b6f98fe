"""Strategies for what stands beside manifests: meshes, policies, placements, transfer files."""

from dataclasses import dataclass
from math import prod

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tranship.schema.dtypes import CODE_DTYPES, DType, is_float, widens
from tranship.schema.manifest import Axis
from tranship.schema.placement import PLACEMENT_FORMAT, Links, Placement, Seat
from tranship.schema.policy import POLICY_FORMAT, Allowance, Policy, Unused
from tranship.schema.transfer import TRANSFER_FORMAT, Options, Transfer

FLOATS = tuple(dtype for dtype in DType if is_float(dtype) and dtype not in CODE_DTYPES)
CODES = tuple(sorted(CODE_DTYPES))
LOSSY = (
    *(("cast", a, b) for a in FLOATS for b in FLOATS if not widens(a, b)),
    *(("dequantize", a, b) for a in CODES for b in FLOATS),
    *(("requantize", a, b) for a in CODES for b in CODES),
)
PATTERNS = ("*", "model.*", "lm_head.weight", "model.layers.*.mlp.*", "mtp.*", "*.bias")
REASONS = st.sampled_from(["the engine needs it", "measured: no loss"])


@dataclass(frozen=True)
class Mesh:
    """Ranks 0 to `world_size` - 1 and the axes that divide them."""

    world_size: int
    axes: tuple[Axis, ...]


@st.composite
def meshes(draw: DrawFn, max_ranks: int = 8) -> Mesh:
    """Draw a mesh: axes that multiply up to all ranks, and perhaps some over several of them.

    Args:
        draw: Given by Hypothesis.
        max_ranks: The largest world.

    Raises:
        ValueError: `max_ranks` is less than one.
    """
    if max_ranks < 1:
        raise ValueError("a mesh has at least one rank")
    names = ["tp", "cp", "ep", "pp"]
    sizes: list[int] = []
    for _ in range(draw(st.integers(0, 3))):
        sizes.append(draw(st.integers(1, max_ranks // prod(sizes))))
    axes = [
        Axis(name=name, size=size, stride=prod(sizes[:number]))
        for number, (name, size) in enumerate(zip(names, sizes, strict=False))
    ]
    if len(axes) > 1 and draw(st.booleans()):
        joined = draw(st.integers(2, len(axes)))
        axes.append(Axis(name="joint", size=prod(sizes[:joined]), stride=1))
    return Mesh(prod(sizes), tuple(axes))


@st.composite
def _allowances(draw: DrawFn) -> Allowance:
    edge, sender, receiver = draw(st.sampled_from(LOSSY))
    return Allowance.model_validate(
        {
            "edge": edge,
            "tensors": draw(st.sampled_from(PATTERNS)),
            "sender_dtype": sender,
            "receiver_dtype": receiver,
            "reason": draw(REASONS),
        }
    )


def _edge(allowance: Allowance) -> object:
    return allowance.edge, allowance.tensors, allowance.sender_dtype, allowance.receiver_dtype


def policies() -> st.SearchStrategy[Policy]:
    """Draw policies; they need not fit any manifest."""
    unused = st.builds(Unused, tensors=st.sampled_from(PATTERNS), reason=REASONS)
    return st.builds(
        Policy,
        format=st.just(POLICY_FORMAT),
        allow=st.lists(_allowances(), max_size=3, unique_by=_edge).map(tuple),
        unused=st.lists(unused, max_size=2, unique_by=lambda line: line.tensors).map(tuple),
    )


@st.composite
def placements(draw: DrawFn) -> Placement:
    """Draw placements: ranks fill one host after the other, apart or together with the others'."""
    devices = draw(st.sampled_from([8, 4, 2, 1]))
    first = draw(st.sampled_from([1024, 0, 1]))
    host, device = f"rank // {devices}", f"rank % {devices}"
    rates = st.sampled_from([900.0, 50.0, 400.0])
    return Placement(
        format=PLACEMENT_FORMAT,
        sender=Seat(host=host, device=device),
        receiver=Seat(host=f"{host} + {first}", device=device),
        links=draw(
            st.none()
            | st.builds(Links, device_gb_per_s=rates, host_gb_per_s=rates, network_gb_per_s=rates)
        ),
    )


@st.composite
def transfer_files(draw: DrawFn) -> Transfer:
    """Draw transfer files. The documents that they name need not exist."""
    folder = draw(st.sampled_from(["", "manifests/", "../shared/"]))
    options = st.builds(
        Options,
        formula=st.sampled_from(["divide", "reciprocal", "rescale", "power_of_two"]),
        staging_bytes=st.sampled_from([1 << 30, 1 << 20, 4096]),
    )
    return Transfer(
        format=TRANSFER_FORMAT,
        sender=f"{folder}trainer.manifest.json",
        receiver=f"{folder}engine.manifest.json",
        policy=draw(st.sampled_from([None, "policy.json", "policy.toml"])),
        placement=draw(st.sampled_from([None, "placement.toml"])),
        options=draw(st.just(Options()) | options),
    )
