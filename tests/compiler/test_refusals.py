"""What the passes refuse: every code of the compiler, provoked by one change to a good pair."""

from typing import Any

import pytest

from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.manifest import Manifest
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options

WEIGHT = "model.layers.{layer}.w.weight"
LAYERS = {"layer": "0..1"}


def piece(**changes: Any) -> dict[str, Any]:
    """Describe a piece that is all of one tensor [8, 4]."""
    return {"tensor": WEIGHT, "start": [0, 0], "extent": [8, 4]} | changes


def buffer(**changes: Any) -> dict[str, Any]:
    """Describe a BF16 buffer of one such piece per layer."""
    good = {"name": WEIGHT, "indices": LAYERS, "dtype": "bf16", "shape": [8, 4]}
    return good | {"pieces": [piece()]} | changes


def scaled(**changes: Any) -> dict[str, Any]:
    """Describe FP8 codes in blocks of 4 x 4."""
    encoding = {"kind": "scaled", "block": [4, 4], "scale": f"{WEIGHT}_scale_inv"}
    return buffer(dtype="f8e4m3fn", encoding=encoding) | changes


def scales(**changes: Any) -> dict[str, Any]:
    """Describe the scales of `scaled`."""
    own = piece(part="scale", extent=[2, 1])
    good = {"name": f"{WEIGHT}_scale_inv", "dtype": "f32", "shape": [2, 1], "pieces": [own]}
    return buffer(encoding={"kind": "scale", "of": WEIGHT}) | good | changes


def manifest(side: str, *buffers: dict[str, Any], **changes: Any) -> Manifest:
    """Declare buffers on two ranks of axis `tp`."""
    tensors = [{"name": WEIGHT, "indices": LAYERS, "shape": [8, 4]}]
    axes = [{"name": "tp", "size": 2, "stride": 1}]
    document = {"format": "tranship.manifest/1", "side": side, "world_size": 2, "axes": axes}
    return Manifest.model_validate(
        document | {"tensors": tensors, "buffers": list(buffers)} | changes, strict=False
    )


def refused(
    sender: Manifest, receiver: Manifest, policy: Policy | None = None, **options: Any
) -> set[str]:
    """Return the codes with which a pair is refused."""
    with pytest.raises(DiagnosticError) as caught:
        compile_transfer(sender, receiver, policy, options=Options(**options))
    return {found.code for found in caught.value.diagnostics}


def policy(**fields: Any) -> Policy:
    """Write a policy."""
    return Policy.model_validate({"format": "tranship.policy/1"} | fields, strict=False)


SENDER = manifest("sender", buffer())
RECEIVER = manifest("receiver", buffer())
OTHER = "model.layers.{layer}.other.weight"


def two(side: str, *buffers: dict[str, Any]) -> Manifest:
    """Declare a second tensor besides."""
    names = (WEIGHT, OTHER)
    tensors = [{"name": name, "indices": LAYERS, "shape": [8, 4]} for name in names]
    return manifest(side, *buffers, tensors=tensors)


MORE = buffer(name=OTHER, pieces=[piece(tensor=OTHER)])
TALL = [{"name": WEIGHT, "indices": LAYERS, "shape": [9, 4]}]
HALF = buffer(pieces=[piece(extent=[4, 4])])
SKIPPING = buffer(
    pieces=[
        piece(extent=[4, 4], step=[2, 1]),
        piece(start=[1, 0], extent=[4, 4], step=[2, 1], offset=16),
    ]
)
OVERLAP = buffer(
    shape=[10, 4],
    pieces=[piece(extent=[5, 4]), piece(start=[3, 0], extent=[5, 4], offset=20)],
)
DERIVED = {"kind": "derived", "recipe": "r"}
FP8 = manifest("receiver", scaled(), scales())


@pytest.mark.parametrize(
    ("code", "sender", "receiver"),
    [
        ("TS201", SENDER, two("receiver", buffer(), MORE)),
        ("TS202", two("sender", buffer(), MORE), RECEIVER),
        ("TS203", SENDER, manifest("receiver", buffer(), tensors=TALL)),
        ("TS301", manifest("sender", HALF), RECEIVER),
        ("TS302", manifest("sender", OVERLAP), RECEIVER),
        ("TS303", manifest("sender", SKIPPING), FP8),
        (
            "TS304",
            manifest(
                "sender",
                scaled(pieces=[piece(origin=[-4, 0])]),
                scales(pieces=[piece(part="scale", start=[1, 0], extent=[2, 1], origin=[-4, 0])]),
            ),
            FP8,
        ),
        ("TS401", manifest("sender", buffer(dtype="i32")), RECEIVER),
        ("TS401", manifest("sender", buffer(dtype="f64")), FP8),
        ("TS402", manifest("sender", buffer(dtype="f32")), RECEIVER),
        ("TS402", manifest("sender", scaled(), scales()), RECEIVER),
        ("TS403", SENDER, manifest("receiver", buffer(layout="cutlass_w31"))),
        ("TS403", SENDER, manifest("receiver", scaled(), scales(layout="cutlass_w31"))),
        (
            "TS404",
            SENDER,
            manifest("receiver", scaled(), scales(pieces=[piece(part="scale", extent=[1, 1])])),
        ),
        (
            "TS502",
            SENDER,
            manifest(
                "receiver",
                buffer(),
                buffer(name="a", indices={}, pieces=[], role=DERIVED | {"inputs": ["b"]}),
                buffer(name="b", indices={}, pieces=[], role=DERIVED | {"inputs": ["a"]}),
            ),
        ),
    ],
)
def test_a_pair_that_cannot_be_right_is_refused(
    code: str, sender: Manifest, receiver: Manifest
) -> None:
    assert refused(sender, receiver) == {code}


def test_the_pairs_without_their_change_compile() -> None:
    for receiver in (RECEIVER, FP8):
        assert compile_transfer(SENDER, receiver).edges


def test_a_layout_is_copied_whole_or_not_at_all() -> None:
    sender = manifest("sender", buffer(layout="cutlass_w31"))
    assert compile_transfer(sender, manifest("receiver", buffer(layout="cutlass_w31"))).edges
    shard = buffer(layout="cutlass_w31", pieces=[piece(start=["tp * 4", 0], extent=[4, 4])])
    assert refused(sender, manifest("receiver", shard | {"shape": [4, 4]})) == {"TS403"}


def test_what_a_policy_allows_by_name_compiles_and_idle_excuses_do_not() -> None:
    wide = manifest("sender", buffer(dtype="f32"))
    line = {"edge": "cast", "tensors": "*.w.weight", "reason": "r"}
    allow = policy(allow=[line | {"sender_dtype": "f32", "receiver_dtype": "bf16"}])
    assert [edge.op for edge in compile_transfer(wide, RECEIVER, allow).edges] == ["cast"]
    other = policy(allow=[line | {"sender_dtype": "f32", "receiver_dtype": "f16"}])
    assert refused(wide, RECEIVER, other) == {"TS402"}
    idle = policy(unused=[{"tensors": "mtp.*", "reason": "r"}])
    assert refused(SENDER, RECEIVER, idle) == {"TS204"}


def test_packed_scales_are_not_computed_with() -> None:
    codes = manifest("sender", scaled(), scales(layout="deepgemm_mn_major_ue8m0"))
    line = {"edge": "dequantize", "tensors": "*", "reason": "r"}
    allow = policy(allow=[line | {"sender_dtype": "f8e4m3fn", "receiver_dtype": "bf16"}])
    assert refused(codes, RECEIVER, allow) == {"TS403"}
    raw = manifest("sender", scaled(), scales())
    assert [edge.op for edge in compile_transfer(raw, RECEIVER, allow).edges] == ["dequantize"]


def test_a_block_that_is_the_whole_tensor_cannot_be_cut_into_windows() -> None:
    shape = [4096, 8]
    tensors = [{"name": WEIGHT, "indices": LAYERS, "shape": shape}]
    whole = {"shape": shape, "pieces": [piece(extent=shape)]}
    encoding = {"kind": "scaled", "block": ["all", "all"], "scale": f"{WEIGHT}_scale_inv"}
    one = {"shape": [1, 1], "pieces": [piece(part="scale", extent=[1, 1])]}
    sender = manifest("sender", buffer() | whole, tensors=tensors)
    receiver = manifest(
        "receiver", scaled(encoding=encoding) | whole, scales() | one, tensors=tensors
    )
    assert refused(sender, receiver, staging_bytes=4096) == {"TS501"}
    assert compile_transfer(sender, receiver).edges


def test_a_piece_exists_where_its_own_and_its_buffers_conditions_hold() -> None:
    both = buffer(at={"tp": "layer"}, pieces=[piece(at={"tp": 0})])
    assert refused(SENDER, manifest("receiver", both)) == {"TS405"}
    never = buffer(at={"tp": 0}, pieces=[piece(at={"tp": 0}), piece(at={"tp": 1})])
    (edge,) = compile_transfer(SENDER, manifest("receiver", never)).edges
    assert edge.receiver.at == {"tp": 0}


def test_a_layer_spelled_out_is_the_layer_with_that_number() -> None:
    def spelled(text: str) -> str:
        return text.replace("{layer}", "1")

    names = [WEIGHT, spelled(WEIGHT)]
    tensors = [
        {"name": names[0], "indices": {"layer": "0"}, "shape": [8, 4]},
        {"name": names[1], "shape": [8, 4]},
    ]
    first = buffer(indices={"layer": "0"})
    last = buffer(name=names[1], indices={}, pieces=[piece(tensor=names[1])])
    plan = compile_transfer(SENDER, manifest("receiver", first, last, tensors=tensors))
    assert [dict(edge.indices) for edge in plan.edges] == [{"layer": "0"}, {"layer": "1"}]


def tensor(name: str, shape: list[int], **indices: str) -> dict[str, Any]:
    """Declare a tensor family."""
    return {"name": name, "indices": indices, "shape": shape}


def whole(name: str, tensor_name: str, shape: list[int], **indices: str) -> dict[str, Any]:
    """Describe a float32 buffer that holds a tensor whole."""
    own = {"tensor": tensor_name, "start": [0] * len(shape), "extent": shape}
    return {"name": name, "indices": indices, "dtype": "f32", "shape": shape, "pieces": [own]}


def pair(name: str, shape: list[int], **indices: str) -> tuple[Manifest, Manifest]:
    """Declare one family on both sides."""
    both = [
        manifest(
            side, whole(name, name, shape, **indices), tensors=[tensor(name, shape, **indices)]
        )
        for side in ("sender", "receiver")
    ]
    return both[0], both[1]


def proved(sender: Manifest, receiver: Manifest, **options: Any) -> TransferPlan:
    """Compile and verify."""
    chosen = Options(**options)
    plan = compile_transfer(sender, receiver, options=chosen)
    digests = digests_of(sender, receiver, None, None, chosen)
    assert verify(plan, sender, receiver, digests=digests, options=chosen) == ()
    return plan


@pytest.mark.parametrize(
    ("name", "shape", "indices"),
    [
        ("t.{a}.{b}.{c}", [64, 16], {"a": "0..1", "b": "0..1", "c": "0..2"}),
        ("t.{window}.w", [64, 64], {"window": "0..1"}),
        ("t.{a}.{window}", [64, 64], {"a": "0..1", "window": "0..2"}),
        ("t", [64, 64], {}),
    ],
)
def test_tensors_that_do_not_fit_a_round_are_divided(
    name: str, shape: list[int], indices: dict[str, str]
) -> None:
    assert len(proved(*pair(name, shape, **indices), staging_bytes=8192).rounds) > 2


def test_layers_may_have_different_shapes() -> None:
    name, tensors, buffers = "l.{i}", list[dict[str, Any]](), list[dict[str, Any]]()
    for members, rows in (("0..1", 64), ("2..3", 32)):
        tensors.append(tensor(name, [rows, 8], i=members))
        buffers.append(whole(name, name, [rows, 8], i=members))
    sender = manifest("sender", *buffers, tensors=tensors)
    receiver = manifest("receiver", *reversed(buffers), tensors=tensors[::-1])
    assert sorted(edge.shape[0] for edge in proved(sender, receiver).edges) == [32, 64]


@pytest.mark.parametrize("other", ["x", "u.{i}.{j}"])
def test_ties_that_contradict_or_change_an_index_are_refused(other: str) -> None:
    held = [whole(n, n, [4]) for n in ("u", "x")]
    plain = [tensor(n, [4]) for n in ("u", "x")]
    sender = manifest("sender", *held, tensors=[*plain, tensor("v", [4]) | {"tied_to": other}])
    tied = [*plain, tensor("v", [4]) | {"tied_to": "u"}]
    receiver = manifest("receiver", *held, whole("v", "v", [4]), tensors=tied)
    assert refused(sender, receiver) == {"TS205"}


def test_names_of_the_two_sides_do_not_capture_one_another() -> None:
    name = "t.{i}.{j}"
    indices = {"i": "0..1", "j": "0..1"}
    sender, _ = pair(name, [4], **indices)
    renamed = {"j": "0..1", "i": "0..1"}
    tensors = [tensor("t.{j}.{i}", [4], **renamed)]
    axes = [{"name": "i_2", "size": 2, "stride": 1}]
    swapped = whole("{i}.{j}", "t.{j}.{i}", [4], **renamed)
    plan = proved(sender, manifest("receiver", swapped, tensors=tensors, axes=axes))
    (edge,) = plan.edges
    assert edge.tensor == "t.{j}.{i}"
    assert edge.sender.buffer == "t.{j}.{i}"
