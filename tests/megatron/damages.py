"""Changes of a live model, one at a time, and what is said about each."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.megatron.build import build, parallel
from tests.megatron.cases import CASES, MOE
from tests.megatron.launch import POLICY
from tests.megatron.stand_ins import build_without_gpu
from tests.megatron.transformer_engine import hold_in_blocks
from tests.models.produced import made
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime.bind import bind, find_moved
from tranship.runtime.frameworks.megatron.block_scaled import is_quantized
from tranship.runtime.frameworks.megatron.chunks import megatron_tensors
from tranship.runtime.frameworks.megatron.declare import megatron_declaration
from tranship.runtime.frameworks.megatron.mesh import ParallelSizes
from tranship.schema.check import check_manifest
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side

Damage: TypeAlias = Callable[[nn.Module], None]

ALONE = CASES["alone"]
BLOCKS = replace(CASES["blocks"], sizes=ParallelSizes(1))
EXPERT = "decoder.layers.2.mlp.experts.local_experts.3"
ATTENTION = "decoder.layers.1.self_attention"


def rename(model: nn.Module) -> None:
    """Call the output projection of a layer something else."""
    attention: Any = model.get_submodule(ATTENTION)
    attention.linear_out = attention.linear_proj
    del attention.linear_proj


def drop(model: nn.Module) -> None:
    """Take a weight away."""
    del model.get_submodule(f"{EXPERT}.linear_fc2").weight


def transpose(model: nn.Module) -> None:
    """Hold a weight the other way round."""
    replace_weight(model, lambda weight: weight.t().contiguous())


def retype(model: nn.Module) -> None:
    """Hold a weight in another dtype."""
    replace_weight(model, lambda weight: weight.half())


def complicate(model: nn.Module) -> None:
    """Hold a weight in a dtype that no buffer may have."""
    replace_weight(model, lambda weight: weight.to(torch.complex64))


def replace_weight(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace a weight of an expert."""
    linear: Any = model.get_submodule(f"{EXPERT}.linear_fc2")
    linear.weight = nn.Parameter(change(linear.weight.detach()), requires_grad=False)


def forget(model: Any) -> None:
    """Leave a weight out of the checkpoint."""
    told, name = model.sharded_state_dict, f"{EXPERT}.linear_fc2.weight"

    def without(**given: Any) -> dict[str, Any]:
        return {key: entry for key, entry in told(**given).items() if key != name}

    model.sharded_state_dict = without


def copy(model: Any) -> None:
    """Give the checkpoint copies of a gated weight's parts, in place of the parts."""
    told = model.sharded_state_dict

    def copied(**given: Any) -> dict[str, Any]:
        state = told(**given)
        factory = state[f"{EXPERT}.linear_fc1.weight"]
        views = factory.build_fn

        def copies(key: str, tensor: torch.Tensor, *rest: Any) -> Any:
            return views(key, tensor.clone(), *rest)

        factory.build_fn = copies
        return state

    model.sharded_state_dict = copied


DAMAGES: tuple[Damage, ...] = (rename, drop, transpose, retype, complicate)
"""What is done to the model itself; a bound model may forget what was declared of it."""


def cut_blocks(model: nn.Module) -> None:
    """Hold weights in blocks of FP8 that are smaller than a block."""
    hold_in_blocks(model.get_submodule(EXPERT), "")


def scale_rows(model: nn.Module) -> None:
    """Hold a weight in FP8 with a scale for every 128 elements of a row."""
    cut_blocks(model)
    weights = [weight for weight in model.parameters() if is_quantized(weight)]
    for weight in weights:
        vars(weight)["_is_2D_scaled"] = False


def add(model: Any) -> None:
    """Give the model a module that no checkpoint knows."""
    model.scorer = nn.Linear(2, 2)


BEFORE = (*DAMAGES, forget, copy, add, cut_blocks, scale_rows)
"""What is done before a model is declared."""


def main(port: int, folder: str) -> None:
    """Try everything in a process of its own, and write what was said."""
    torch.set_num_threads(1)
    build_without_gpu()
    store = TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel(ALONE)
    said = {f"{damage.__name__} before": before(damage, Path(folder)) for damage in BEFORE}
    said |= {f"{damage.__name__} after": after(damage, Path(folder)) for damage in DAMAGES}
    said |= {name: other(whole) for name, whole in wholes(Path(folder)).items()}
    said["endings"] = told(lambda: declare(build(ALONE), ALONE.whole(Path(folder)), {"a": "b"}))
    said["left out"] = told(lambda: left_out(Path(folder)))
    said["moved"] = move_codes(Path(folder))
    said["renamed by an ending"] = told(lambda: renamed(Path(folder)))
    Path(folder, "said.json").write_text(json.dumps(said), encoding="utf-8")
    dist.destroy_process_group()


def declare(
    chunks: list[nn.Module], whole: Manifest, names: dict[str, str] | None = None
) -> tuple[Diagnostic, ...]:
    """Declare, and check the declaration."""
    return check_manifest(
        fold(megatron_declaration(chunks, whole, rank=0, world_size=1, names=names))
    )


def before(damage: Damage, folder: Path) -> list[str]:
    """Damage a model that is then declared, checked, and compiled for an engine."""
    chunks, whole = build(ALONE), ALONE.whole(folder)
    damage(chunks[0])

    def transfer() -> tuple[Diagnostic, ...]:
        sender = fold(megatron_declaration(chunks, whole, rank=0, world_size=1))
        if found := check_manifest(sender):
            return found
        receiver = made(folder, ALONE.architecture, "sglang", **ALONE.changes)
        compile_transfer(sender, receiver, POLICY)
        return ()

    return told(transfer)


def after(damage: Damage, folder: Path) -> list[str]:
    """Damage a model that is declared, and then bind it."""
    chunks = build(ALONE)
    declared = fold(megatron_declaration(chunks, ALONE.whole(folder), rank=0, world_size=1))
    damage(chunks[0])

    def rebind() -> tuple[Diagnostic, ...]:
        bind(megatron_tensors(chunks), declared, Side.SENDER, 0)
        return ()

    return told(rebind)


def told(work: Callable[[], tuple[Diagnostic, ...]]) -> list[str]:
    """List the diagnostics that are returned or raised, with their help."""
    try:
        found = work()
    except DiagnosticError as error:
        found = error.diagnostics
    return [f"{each.code}: {each.message}\n{each.help}" for each in found]


def wholes(folder: Path) -> dict[str, Manifest]:
    """Whole models that are not what the live one is."""
    changes: dict[str, dict[str, int]] = {
        "more rows than padded": {"vocab_size": 105},
        "fewer layers": {"num_hidden_layers": 3},
        "more experts": {"num_experts": 8},
        "other groups": {"num_key_value_heads": 2},
    }
    found = {
        name: replace(ALONE, changes=MOE | change).whole(folder) for name, change in changes.items()
    }
    whole = ALONE.whole(folder)
    found["of two ranks"] = whole.model_copy(update={"world_size": 2})
    buffers = [
        family.model_copy(update={"pieces": family.pieces[:-1]})
        if family.name.endswith("linear_qkv.weight")
        else family
        for family in whole.buffers
    ]
    columns = [
        family.model_copy(update={"strides": (1, 4)})
        if family.name.endswith("router.weight")
        else family
        for family in whole.buffers
    ]
    found["columns first"] = whole.model_copy(update={"buffers": tuple(columns)})
    found["without values"] = whole.model_copy(update={"buffers": tuple(buffers)})
    return found


def left_out(folder: Path) -> tuple[Diagnostic, ...]:
    """Declare a model with a module more, but not that."""
    chunks, whole = build(ALONE), ALONE.whole(folder)
    add(chunks[0])
    return check_manifest(
        fold(megatron_declaration(chunks, whole, rank=0, world_size=1, without=["scorer"]))
    )


def other(whole: Manifest) -> list[str]:
    """Declare the model by another whole one."""
    return told(lambda: declare(build(ALONE), whole))


def renamed(folder: Path) -> tuple[Diagnostic, ...]:
    """Declare a model with a module of another name, told of it."""
    chunks = build(ALONE)
    for number in range(ALONE.config["num_hidden_layers"]):
        attention: Any = chunks[0].get_submodule(f"decoder.layers.{number}.self_attention")
        attention.linear_out = attention.linear_proj
        del attention.linear_proj
    ending = {"self_attention.linear_out.weight": "self_attention.linear_proj.weight"}
    return declare(chunks, ALONE.whole(folder), ending)


def move_codes(folder: Path) -> list[str]:
    """Put another tensor of the same memory in place of bound codes, and then other memory."""
    chunks = build(BLOCKS)
    declared = fold(megatron_declaration(chunks, BLOCKS.whole(folder), rank=0, world_size=1))
    bound = bind(megatron_tensors(chunks), declared, Side.SENDER, 0)
    weight: Any = chunks[0].get_parameter(f"{ATTENTION}.linear_proj.weight")
    weight._rowwise_data = weight._rowwise_data.view_as(weight._rowwise_data)
    same = find_moved(bound)
    weight._rowwise_data = weight._rowwise_data.clone()
    return [f"{each.code}: {each.message}" for each in (*same, *find_moved(bound))]
