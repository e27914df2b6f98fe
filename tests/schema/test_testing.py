"""What the public strategies draw is valid, and together it covers what can be declared."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings

from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.schema import testing
from tranship.schema.check import (
    check_manifest,
    check_placement,
    check_policy,
    check_transfer,
)
from tranship.schema.codec import dump, parse_json, validate
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.placement import Placement
from tranship.schema.policy import Policy
from tranship.schema.positions import Source
from tranship.schema.records import Declaration, FillRecord, Ints, PieceRecord
from tranship.schema.rules.axes import axes_fit
from tranship.schema.testing import (
    BrokenManifest,
    Limits,
    ManifestPair,
    Mesh,
    RandomTransfer,
    broken_manifests,
    declarations,
    manifest_pairs,
    manifests,
    meshes,
    placements,
    policies,
    transfer_files,
    transfers,
)
from tranship.schema.transfer import Transfer

ROOT = Path(__file__).parents[2]

few = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@few
@given(manifest=manifests())
def test_manifests_are_valid_and_survive_codec_and_records(manifest: Manifest) -> None:
    assert check_manifest(manifest) == ()
    text = dump(manifest).decode()
    data = parse_json(text, "drawn")
    assert validate(Manifest, data, Source("drawn", text)) == manifest
    assert fold(expand(manifest)) == manifest


@few
@given(transfer=transfers())
def test_transfers_compile_and_verify(transfer: RandomTransfer) -> None:
    inputs = (transfer.sender, transfer.receiver, transfer.policy, transfer.placement)
    if transfer.policy:
        assert check_policy(transfer.policy) == ()
    plan = compile_transfer(*inputs, transfer.options)
    digests = digests_of(*inputs, transfer.options)
    assert verify(plan, *inputs, digests=digests, options=transfer.options) == ()


@few
@given(pair=manifest_pairs())
def test_pairs_compile(pair: ManifestPair) -> None:
    assert (pair.sender.side, pair.receiver.side) == (Side.SENDER, Side.RECEIVER)
    names = {tensor.name for tensor in pair.receiver.tensors}
    assert names <= {tensor.name for tensor in pair.sender.tensors}
    compile_transfer(pair.sender, pair.receiver, pair.policy)


@few
@given(broken=broken_manifests())
def test_a_broken_manifest_is_refused_with_its_code(broken: BrokenManifest) -> None:
    assert broken.code in {found.code for found in check_manifest(broken.manifest)}


@few
@given(mesh=meshes(max_ranks=12))
def test_meshes_divide_their_ranks(mesh: Mesh) -> None:
    assert 1 <= mesh.world_size <= 12
    assert list(axes_fit((), mesh.axes, mesh.world_size)) == []
    apart = [axis.size for axis in mesh.axes if axis.name != "joint"]
    assert prod(apart) == mesh.world_size


@few
@given(policy=policies(), placement=placements(), transfer=transfer_files())
def test_other_documents_are_valid(
    policy: Policy, placement: Placement, transfer: Transfer
) -> None:
    assert (*check_policy(policy), *check_placement(placement), *check_transfer(transfer)) == ()


def kinds(declaration: Declaration, field: str) -> set[str]:
    return {getattr(buffer, field).kind for buffer in declaration.buffers}


def pieces(declaration: Declaration) -> Iterator[PieceRecord]:
    return (piece for buffer in declaration.buffers for piece in buffer.pieces)


def fills(declaration: Declaration) -> Iterator[FillRecord]:
    return (fill for buffer in declaration.buffers for fill in buffer.fills)


def is_uneven(declaration: Declaration) -> bool:
    extents: dict[str, set[Ints]] = {}
    for buffer in declaration.buffers:
        if len(buffer.pieces) == 1:
            (piece,) = buffer.pieces
            extents.setdefault(piece.tensor, set()).add(piece.extent)
    return any(len(some) > 1 for some in extents.values())


SIGHTS: dict[str, Callable[[Declaration], bool]] = {
    "pipeline": lambda d: d.axes[0].size > 1 and d.world_size > len({b.rank for b in d.buffers}),
    "uneven": is_uneven,
    "strided": lambda d: any(max(p.step, default=1) > 1 for p in pieces(d)),
    "fused": lambda d: any(len({p.tensor for p in b.pieces}) > 1 for b in d.buffers),
    "scaled": lambda d: {"scaled", "scale"} <= kinds(d, "encoding"),
    "derived": lambda d: "derived" in kinds(d, "role"),
    "alias": lambda d: "alias" in kinds(d, "role"),
    "constant": lambda d: "constant" in kinds(d, "role"),
    "tie": lambda d: any(tensor.tied_to for tensor in d.tensors),
    "fill with a value": lambda d: any(fill.value >= 0 for fill in fills(d)),
    "fill with a reason": lambda d: any(fill.reason for fill in fills(d)),
    "joint axis": lambda d: any(axis.name == "joint" for axis in d.axes),
    "scalar": lambda d: any(tensor.shape == () for tensor in d.tensors),
    "transposed": lambda d: any(p.strides[0] < p.strides[-1] for p in pieces(d) if p.strides),
}


def found(sight: str, **changes: Any) -> Declaration:
    options = settings(few, max_examples=1500, database=None, **changes)
    return find(declarations(), SIGHTS[sight], settings=options)


@pytest.mark.parametrize("sight", SIGHTS)
def test_everything_that_can_be_declared_is_drawn(sight: str) -> None:
    assert SIGHTS[sight](found(sight, phases=[Phase.generate]))


@pytest.mark.parametrize("sight", ["uneven", "scaled", "tie"])
def test_counterexamples_shrink(sight: str) -> None:
    smallest = found(sight)
    assert len(smallest.tensors) <= 3
    assert smallest.world_size <= 3
    assert len(smallest.buffers) <= 4


def test_the_smallest_of_all_manifests_is_one_tensor_on_one_rank() -> None:
    smallest = find(manifests("receiver"), lambda manifest: True, settings=settings(few))
    assert smallest.world_size == 1
    assert [prod(tensor.shape) for tensor in smallest.tensors] == [1]


@few
@given(declaration=declarations("sender", Limits(ranks=2, tensors=1, layers=1)))
def test_limits_hold(declaration: Declaration) -> None:
    manifest = fold(declaration)
    assert manifest.side is Side.SENDER
    assert manifest.world_size <= 2


def test_nothing_less_than_one_rank_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match="at least one rank"):
        Limits(ranks=0)
    with pytest.raises(ValueError, match="at least one rank"):
        find(meshes(max_ranks=0), lambda mesh: True)


def test_without_hypothesis_it_says_what_to_install() -> None:
    script = "import sys; sys.modules['hypothesis'] = None; import tranship.schema.testing"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'tranship[testing]'" in done.stderr.splitlines()[-1]


def blocks() -> list[str]:
    page = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_run(number: int) -> None:
    assert len(blocks()) == 2
    names: dict[str, Any] = {}
    exec(blocks()[number], names)
    (test,) = (value for name, value in names.items() if name.startswith("test_"))
    test()


def test_the_page_lists_every_strategy() -> None:
    page = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    public = {name for name in testing.__all__ if name.islower() and not name.endswith("_of")}
    assert set(re.findall(r"`(\w+)\([^`]*\)`", page)) >= public
