from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema.declarations import dense_tensors, fsdp, megatron_moe, sglang_moe
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, known_codes
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Axis, Framework, Manifest, Side
from tranship.schema.merge import merge
from tranship.schema.records import Declaration


def part(declaration: Declaration, ranks: set[int]) -> Manifest:
    """What these ranks alone know: their buffers, and the tensors in them."""
    own = tuple(record for record in declaration.buffers if record.rank in ranks)
    held = {piece.tensor for record in own for piece in record.pieces}
    tensors = tuple(tensor for tensor in declaration.tensors if tensor.name in held)
    kept = tuple(sorted(ranks))
    return fold(replace(declaration, ranks=kept, buffers=own, tensors=tensors))


def per_rank(declaration: Declaration) -> list[tuple[str, Manifest]]:
    return [(f"rank{rank}.json", part(declaration, {rank})) for rank in declaration.ranks]


@pytest.mark.parametrize(
    "make", [sglang_moe, megatron_moe, lambda: fsdp(dense_tensors(2, 16, 32, 10), 6)]
)
def test_merged_ranks_are_the_families_of_the_whole(make: Callable[[], Declaration]) -> None:
    declaration = make()
    merged = merge(per_rank(declaration))
    assert merged == fold(declaration)
    assert expand(merged) == declaration


@given(st.lists(st.integers(0, 2), min_size=8, max_size=8), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=5)
def test_any_partition_of_the_ranks_merges_alike(owner: list[int], random: Random) -> None:
    declaration = megatron_moe()
    groups = [{rank for rank, one in enumerate(owner) if one == group} for group in set(owner)]
    files = [(f"{n}.json", part(declaration, ranks)) for n, ranks in enumerate(groups)]
    random.shuffle(files)
    assert merge(files) == fold(declaration)


def refused(files: list[tuple[str, Manifest]]) -> tuple[Diagnostic, ...]:
    with pytest.raises(DiagnosticError) as caught:
        merge(files)
    assert {one.code for one in caught.value.diagnostics} <= set(known_codes())
    return caught.value.diagnostics


def changed(number: int, **fields: object) -> list[tuple[str, Manifest]]:
    """The files of two ranks, with fields of one changed."""
    files = per_rank(sglang_moe())
    name, manifest = files[number]
    files[number] = name, manifest.model_copy(update=fields)
    return files


@pytest.mark.parametrize(
    ("code", "fields", "expected", "found"),
    [
        ("TS140", {"side": Side.SENDER}, "receiver", "sender"),
        ("TS141", {"world_size": 4}, "2", "4"),
        (
            "TS142",
            {"axes": (Axis(name="tp", size=2, stride=1),)},
            "tp 2 (stride 1), ep 2 (stride 1)",
            "tp 2 (stride 1)",
        ),
        ("TS143", {"framework": Framework(name="vllm", version="1")}, "sglang", "vllm 1"),
        ("TS143", {"framework": None}, "sglang", "none"),
    ],
)
def test_ranks_of_one_side_agree(
    code: str, fields: dict[str, object], expected: str, found: str
) -> None:
    (problem,) = refused(changed(1, **fields))
    assert (problem.code, problem.expected, problem.found) == (code, expected, found)
    assert problem.at is not None
    assert (problem.at.file, problem.at.pointer) == ("rank1.json", f"/{next(iter(fields))}")
    assert problem.labels[0].at.file == "rank0.json"


def test_a_rank_is_declared_once() -> None:
    files = per_rank(sglang_moe())
    (problem,) = refused([*files, ("again.json", files[1][1]), ("more.json", files[1][1])][:3])
    assert (problem.code, problem.message) == (
        "TS144",
        "both again.json and rank1.json speak for rank 1",
    )


def test_every_rank_is_declared() -> None:
    files = per_rank(megatron_moe())
    (problem,) = refused([files[0], files[5]])
    assert problem.code == "TS145"
    assert problem.message == "no manifest speaks for ranks 1..4,6..7"


def with_tensors(**changes: object) -> list[tuple[str, Manifest]]:
    """Rank 1 declares all families of expert tensors differently."""
    files = per_rank(sglang_moe())
    name, manifest = files[1]
    tensors = [
        family.model_copy(update=changes) if ".mlp.gate." in family.name else family
        for family in manifest.tensors
    ]
    files[1] = name, manifest.model_copy(update={"tensors": tuple(tensors)})
    return files


@pytest.mark.parametrize(
    ("code", "field", "changes", "message"),
    [
        (
            "TS146",
            "shape",
            {"shape": (8, 128)},
            "model.layers.0.mlp.gate.weight and 3 more: "
            "shape [8, 128] here, [8, 256] in rank0.json",
        ),
        (
            "TS147",
            "tied_to",
            {"tied_to": "model.norm.weight"},
            "model.layers.0.mlp.gate.weight and 3 more: "
            "tied to model.norm.weight here, to nothing in rank0.json",
        ),
    ],
)
def test_a_tensor_has_one_shape_and_one_tie(
    code: str, field: str, changes: dict[str, object], message: str
) -> None:
    files = with_tensors(**changes)
    (problem,) = refused(files)
    assert (problem.code, problem.message) == (code, message)
    assert problem.at is not None
    family = files[1][1].tensors[int(problem.at.pointer.split("/")[2])]
    assert problem.at.pointer.endswith(f"/{field}")
    assert family.name == "model.layers.{layer}.mlp.gate.weight"


def test_all_disagreements_are_reported() -> None:
    files = with_tensors(shape=(1, 1))
    name, manifest = files[1]
    files[1] = name, manifest.model_copy(update={"side": Side.SENDER, "ranks": "0"})
    assert [problem.code for problem in refused(files)] == ["TS140", "TS144", "TS145", "TS146"]


def test_there_must_be_a_manifest() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])
