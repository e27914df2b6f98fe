"""Bugs of real projects restated as manifests: short forms, and how a transfer is judged."""

from collections.abc import Mapping, Sequence
from typing import Any

from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.schema.check import check_manifest, check_policy
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options

Json = dict[str, Any]
Shape = Sequence[int | str]

FP8 = "f8e4m3fn"


def tensor(name: str, shape: Shape, **fields: Any) -> Json:
    """Declare logical tensors; keywords are indices, but for `tied_to`."""
    tie = {"tied_to": fields.pop("tied_to")} if "tied_to" in fields else {}
    return {"name": name, "indices": fields, "shape": list(shape)} | tie


def piece(name: str, extent: Shape, start: Shape = (), **fields: Any) -> Json:
    """Hold a box of a tensor, from its first element unless `start` says otherwise."""
    first = list(start) or [0] * len(extent)
    return {"tensor": name, "start": first, "extent": list(extent)} | fields


def buffer(name: str, dtype: str, shape: Shape, *pieces: Json, **fields: Any) -> Json:
    """Declare a buffer family."""
    return {"name": name, "dtype": dtype, "shape": list(shape), "pieces": list(pieces)} | fields


def whole(name: str, dtype: str, shape: Shape, **fields: Any) -> Json:
    """Declare a buffer that is all of the tensor of its name."""
    return buffer(name, dtype, shape, piece(name, shape), **fields)


def scaled(name: str, block: Shape = (128, 128), scale: str = "", **fields: Any) -> Json:
    """Encode the values of buffer `name`: one scale for each block, in `NAME_scale_inv`."""
    named = scale or f"{name}_scale_inv"
    return {"kind": "scaled", "block": list(block), "scale": named} | fields


def fp8(name: str, shape: Sequence[int], **fields: Any) -> list[Json]:
    """Declare a weight that is all of its tensor in blocks of 128 x 128, and its scales."""
    blocks = [-(-size // 128) for size in shape]
    scales = buffer(
        f"{name}_scale_inv",
        "f32",
        blocks,
        piece(name, blocks, part="scale"),
        encoding={"kind": "scale", "of": name},
    )
    return [whole(name, FP8, shape, encoding=scaled(name)) | fields, scales | fields]


def manifest(
    side: str,
    tensors: Sequence[Json],
    buffers: Sequence[Json],
    framework: str = "",
    **axes: tuple[int, int],
) -> Manifest:
    """Declare a side; keywords are axes as (size, stride)."""
    world = max((size * stride for size, stride in axes.values()), default=1)
    named = {"framework": {"name": framework}} if framework else {}
    document = {
        "format": "tranship.manifest/1",
        "side": side,
        **named,
        "world_size": world,
        "axes": [{"name": n, "size": size, "stride": stride} for n, (size, stride) in axes.items()],
        "tensors": list(tensors),
        "buffers": list(buffers),
    }
    return Manifest.model_validate(document, strict=False)


def policy(*allow: Mapping[str, str]) -> Policy:
    """Allow lossy edges."""
    fields = {"format": "tranship.policy/1", "allow": allow}
    return Policy.model_validate(fields, strict=False)


def findings(
    sender: Manifest,
    receiver: Manifest,
    rules: Policy | None = None,
    placement: Placement | None = None,
    options: Options | None = None,
    plan: TransferPlan | None = None,
) -> tuple[Diagnostic, ...]:
    """Find what the command line would: what is wrong with the files, the transfer or the plan."""
    found = check_manifest(sender) + check_manifest(receiver)
    found += check_policy(rules) if rules else ()
    if found:
        return found
    inputs, chosen = (sender, receiver, rules, placement), options or Options()
    try:
        plan = plan or compile_transfer(*inputs, chosen)
    except DiagnosticError as error:
        return error.diagnostics
    return verify(plan, *inputs, digests=digests_of(*inputs, chosen), options=chosen)


def report(found: Sequence[Diagnostic]) -> str:
    """Write what a victim reads: each finding in one paragraph, labels and help included."""
    return "\n".join(
        f"{one.code}: {one.message}; expected {one.expected}; found {one.found}; "
        f"{'; '.join(label.text for label in one.labels)}; help: {one.help}; {one.suggestion or ''}"
        for one in found
    )


def assert_refused(found: Sequence[Diagnostic], code: str, *words: str) -> None:
    """Assert one diagnostic of this code, whose report has all the words."""
    assert [one.code for one in found] == [code], report(found)
    missing = [word for word in words if word not in report(found)]
    assert not missing, f"{missing} not in: {report(found)}"


def assert_fine(*inputs: Any, **options: Any) -> None:
    """Assert that a transfer compiles and its plan is proved."""
    assert report(findings(*inputs, **options)) == ""


def plan_of(sender: Manifest, receiver: Manifest, **inputs: Any) -> TransferPlan:
    """Compile a good transfer, for a plan to be spoilt."""
    return compile_transfer(sender, receiver, **inputs)
