"""Small pairs of manifests, each with another way in which a transfer can be right or wrong."""

from collections.abc import Callable

from tests.mutants.declare import Case, Ints, manifest, plain, scaled
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    Derived,
    Fill,
    Part,
    Piece,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)
from tranship.schema.placement import Placement, Seat
from tranship.schema.policy import Allowance, Policy, Unused


def copies() -> Case:
    """BF16 by rows over tp2 and dp2 to a fused and a transposed buffer over tp4; eight layers."""
    layers = {"layer": "0..7"}
    q, kv = "l.{layer}.q", "l.{layer}.kv"
    out, norm = "l.{layer}.o", "l.{layer}.norm"
    tensors = (
        TensorFamily(name=q, indices=layers, shape=(8, 6)),
        TensorFamily(name=kv, indices=layers, shape=(4, 6)),
        TensorFamily(name=out, indices=layers, shape=(6, 8)),
        TensorFamily(name=norm, indices=layers, shape=(6,)),
    )
    sender = manifest(
        Side.SENDER,
        4,
        {"dp": (2, 2), "tp": (2, 1)},
        tensors,
        (
            plain(q, DType.BF16, (4, 6), ("tp * 4", 0), indices=layers),
            plain(kv, DType.BF16, (2, 6), ("tp * 2", 0), indices=layers),
            plain(out, DType.BF16, (3, 8), ("tp * 3", 0), indices=layers),
            plain(norm, DType.BF16, (6,), (0,), indices=layers),
        ),
    )
    fused = BufferFamily(
        name="l.{layer}.qkv",
        indices=layers,
        dtype=DType.BF16,
        shape=(3, 6),
        pieces=(
            Piece(tensor=q, start=("tp * 2", 0), extent=(2, 6)),
            Piece(tensor=kv, start=("tp", 0), extent=(1, 6), offset=12),
        ),
    )
    transposed = BufferFamily(
        name=out,
        indices=layers,
        dtype=DType.BF16,
        shape=(2, 6),
        pieces=(Piece(tensor=out, start=(0, "tp * 2"), extent=(6, 2), strides=(1, 6)),),
    )
    receiver = manifest(
        Side.RECEIVER,
        4,
        {"tp": (4, 1)},
        tensors,
        (fused, transposed, plain(norm, DType.F32, (6,), (0,), indices=layers)),
    )
    host = Seat(host="rank // 2", device="rank % 2")
    placement = Placement(format="tranship.placement/1", sender=host, receiver=host)
    return Case("copies", sender, receiver, placement=placement)


def cut_blocks() -> Case:
    """Uneven row shards over three ranks cut the blocks; the receiver's columns do not."""
    tensors = (TensorFamily(name="w", shape=(18, 8)),)
    rows = "max(min(7, 18 - rank * 7), 0)"
    sender = manifest(
        Side.SENDER, 3, {}, tensors, (plain("w", DType.BF16, (rows, 8), ("rank * 7", 0)),)
    )
    receiver = manifest(
        Side.RECEIVER,
        2,
        {"tp": (2, 1)},
        tensors,
        scaled("w", (18, 4), (0, "tp * 4"), (4, 4), (5, 1), (0, "tp")),
    )
    return Case("cut_blocks", sender, receiver)


def split_amax() -> Case:
    """Both sides cut blocks, by rows; powers of two as scales, as exponents."""
    layers = {"layer": "0..1"}
    name = "l.{layer}.w"
    tensors = (TensorFamily(name=name, indices=layers, shape=(20, 8)),)
    rows = "max(min(7, 20 - rank * 7), 0)"
    sender = manifest(
        Side.SENDER,
        3,
        {},
        tensors,
        (plain(name, DType.F32, (rows, 8), ("rank * 7", 0), indices=layers),),
    )
    receiver = manifest(
        Side.RECEIVER,
        2,
        {"tp": (2, 1)},
        tensors,
        scaled(
            name,
            (10, 8),
            ("tp * 10", 0),
            (4, 4),
            (3, 2),
            ("tp * 2", 0),
            scale_dtype=DType.F8E8M0FNU,
            powers=True,
            indices=layers,
        ),
    )
    return Case("split_amax", sender, receiver)


def experts() -> Case:
    """Experts over ep2 to stacked gate and up projections with scales, over ep4."""
    every = {"layer": "0..1", "expert": "0..7"}
    names = ("l.{layer}.e.{expert}.gate", "l.{layer}.e.{expert}.up")
    tensors = tuple(TensorFamily(name=name, indices=every, shape=(4, 6)) for name in names)
    held = tuple(
        BufferFamily(
            name=f"local.{name.replace('{expert}', '{expert % 4}')}",
            indices=every,
            at={"ep": "expert // 4"},
            dtype=DType.BF16,
            shape=(4, 6),
            pieces=(Piece(tensor=name, start=(0, 0), extent=(4, 6)),),
        )
        for name in names
    )
    stacked = BufferFamily(
        name="l.{layer}.w13",
        indices={"layer": "0..1"},
        dtype=DType.F8E4M3FN,
        shape=(2, 8, 6),
        encoding=Scaled(kind="scaled", block=(2, 3), scale="l.{layer}.w13_scale_inv"),
        pieces=tuple(_expert(name, half, (4, 6)) for half, name in enumerate(names)),
    )
    scales = BufferFamily(
        name="l.{layer}.w13_scale_inv",
        indices={"layer": "0..1"},
        dtype=DType.F32,
        shape=(2, 4, 2),
        encoding=Scale(kind="scale", of="l.{layer}.w13"),
        pieces=tuple(_expert(name, half, (2, 2), Part.SCALE) for half, name in enumerate(names)),
    )
    sender = manifest(Side.SENDER, 2, {"ep": (2, 1)}, tensors, held)
    receiver = manifest(Side.RECEIVER, 4, {"ep": (4, 1)}, tensors, (stacked, scales))
    return Case("experts", sender, receiver)


def _expert(tensor: str, half: int, extent: Ints, part: Part = Part.VALUE) -> Piece:
    """Half 0 or 1 of one expert in a stack of two."""
    size = extent[0] * extent[1]
    return Piece(
        tensor=tensor,
        part=part,
        indices={"expert": "0..7"},
        at={"ep": "expert // 2"},
        start=(0, 0),
        extent=extent,
        offset=f"expert % 2 * {2 * size} + {half * size}",
        strides=(extent[1], 1),
    )


def passthrough() -> Case:
    """Codes and scales as they are, from columns over tp2 to rows over tp2."""
    tensors = (TensorFamily(name="w", shape=(8, 12)),)
    sender = manifest(
        Side.SENDER,
        2,
        {"tp": (2, 1)},
        tensors,
        scaled("w", (8, 6), (0, "tp * 6"), (4, 3), (2, 2), (0, "tp * 2")),
    )
    receiver = manifest(
        Side.RECEIVER,
        2,
        {"tp": (2, 1)},
        tensors,
        scaled("w", (4, 12), ("tp * 4", 0), (4, 3), (1, 4), ("tp", 0)),
    )
    return Case("passthrough", sender, receiver)


def tied() -> Case:
    """An embedding, padded at the receiver, that is the head as well; rows of every third kind."""
    head = TensorFamily(name="head", shape=(10, 4), tied_to="embed")
    embed = TensorFamily(name="embed", shape=(10, 4))
    rows = "(12 - rank) // 3"
    strided = Piece(tensor="embed", start=("rank", 0), extent=(rows, 4), step=(3, 1))
    sender = manifest(
        Side.SENDER,
        3,
        {},
        (embed, head),
        (BufferFamily(name="embed", dtype=DType.BF16, shape=(rows, 4), pieces=(strided,)),),
    )
    filled = "max(tp * 6 - 4, 0)"
    padded = tuple(
        BufferFamily(
            name=name,
            dtype=DType.BF16,
            shape=(6, 4),
            pieces=(Piece(tensor=name, start=("tp * 6", 0), extent=(f"6 - {filled}", 4)),),
            fills=(
                Fill(offset=f"24 - {filled} * 4", sizes=(filled, 3), strides=(4, 1), value=0),
                Fill(
                    offset=f"27 - {filled} * 4",
                    sizes=(filled,),
                    strides=(4,),
                    reason="nobody reads it",
                ),
            ),
        )
        for name in ("embed", "head")
    )
    receiver = manifest(Side.RECEIVER, 2, {"tp": (2, 1)}, (embed, head), padded)
    return Case("tied", sender, receiver)


def derived() -> Case:
    """A chain of recipes behind scaled weights, an alias, a lossy cast and an unused tensor."""
    layers = {"layer": "0..8"}
    weight, gate, spare = "l.{layer}.kv_b", "l.{layer}.gate", "mtp.{layer}.w"
    tensors = (
        TensorFamily(name=weight, indices=layers, shape=(8, 4)),
        TensorFamily(name=gate, indices=layers, shape=(4, 4)),
    )
    sender = manifest(
        Side.SENDER,
        2,
        {"pp": (2, 1)},
        (*tensors, TensorFamily(name=spare, indices={"layer": "0..1"}, shape=(2, 2))),
        (
            plain(weight, DType.BF16, (8, 4), (0, 0), indices=layers, at={"pp": "layer // 5"}),
            plain(gate, DType.F32, (4, 4), (0, 0), indices=layers, at={"pp": "layer // 5"}),
            plain(spare, DType.BF16, (2, 2), (0, 0), indices={"layer": "0..1"}, at={"pp": 1}),
        ),
    )
    first = Derived(
        kind="derived", recipe="absorb", inputs=("alias.{layer}", f"{weight}_scale_inv")
    )
    second = Derived(kind="derived", recipe="transpose", inputs=("l.{layer}.w_kc",))
    receiver = manifest(
        Side.RECEIVER,
        2,
        {"tp": (2, 1)},
        tensors,
        (
            plain(gate, DType.BF16, (4, 4), (0, 0), indices=layers),
            *scaled(weight, (4, 4), ("tp * 4", 0), (4, 2), (1, 2), ("tp", 0), indices=layers),
            _made("alias.{layer}", Alias(kind="alias", of=weight), DType.F8E4M3FN),
            _made("l.{layer}.w_kc", first, DType.BF16),
            _made("l.{layer}.w_vc", second, DType.BF16),
        ),
    )
    policy = Policy(
        format="tranship.policy/1",
        allow=(
            Allowance(
                edge="cast",
                tensors="l.*.gate",
                sender_dtype=DType.F32,
                receiver_dtype=DType.BF16,
                reason="the engine computes the router in bf16",
            ),
        ),
        unused=(Unused(tensors="mtp.*", reason="no speculation"),),
    )
    return Case("derived", sender, receiver, policy)


def _made(name: str, role: Alias | Derived, dtype: DType) -> BufferFamily:
    """A buffer of every layer that no round writes."""
    return BufferFamily(name=name, indices={"layer": "0..8"}, dtype=dtype, shape=(4, 4), role=role)


def lossy() -> Case:
    """Codes to values, and codes to other codes, by leave of the policy."""
    tensors = (TensorFamily(name="v", shape=(8, 6)), TensorFamily(name="w", shape=(8, 6)))
    sender = manifest(
        Side.SENDER,
        2,
        {"tp": (2, 1)},
        tensors,
        (
            *scaled("v", (4, 6), ("tp * 4", 0), (2, 3), (2, 2), ("tp * 2", 0)),
            *scaled("w", (4, 6), ("tp * 4", 0), (2, 3), (2, 2), ("tp * 2", 0)),
        ),
    )
    receiver = manifest(
        Side.RECEIVER,
        1,
        {},
        tensors,
        (
            plain("v", DType.BF16, (8, 6), (0, 0)),
            *scaled("w", (8, 6), (0, 0), (8, 2), (1, 3), (0, 0)),
        ),
    )
    kinds = (("dequantize", "v", DType.BF16), ("requantize", "w", DType.F8E4M3FN))
    policy = Policy(
        format="tranship.policy/1",
        allow=tuple(
            Allowance.model_validate(
                {
                    "edge": edge,
                    "tensors": tensors,
                    "sender_dtype": DType.F8E4M3FN,
                    "receiver_dtype": dtype,
                    "reason": "the engine takes nothing else",
                }
            )
            for edge, tensors, dtype in kinds
        ),
    )
    return Case("lossy", sender, receiver, policy)


CASES: tuple[Callable[[], Case], ...] = (
    copies,
    cut_blocks,
    split_amax,
    experts,
    passthrough,
    tied,
    derived,
    lossy,
)
"""All pairs."""
