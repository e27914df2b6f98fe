"""`tranship show`: a plan or a manifest in words."""

import typer
from pydantic import BaseModel

from tranship.cli.at_rank import manifest_at
from tranship.cli.load import check_document, load_any, raise_errors
from tranship.cli.output import Answer, answer_width
from tranship.cli.progress import progress
from tranship.cli.select import select_from_manifest, select_from_plan
from tranship.cli.show_manifest import manifest_page, manifest_rank_page
from tranship.cli.show_plan import plan_page
from tranship.cli.show_rank import plan_rank_page, rank_document, shares
from tranship.schema.canonical import Json
from tranship.schema.expand import declared_ranks
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan


def run(file: str, tensor: str | None, rank: int | None) -> Answer:
    """Show a file, or what of it is about tensors that `tensor` matches or about one rank.

    Raises:
        DiagnosticError: the file cannot be read or is wrong.
        typer.BadParameter: there is no such tensor or rank, or the file is neither of the two.
    """
    document = load_any(file)
    raise_errors(check_document(document.value, document.source))
    match document.value:
        case TransferPlan() as plan:
            return _show_plan(plan, tensor, rank)
        case Manifest() as manifest:
            return _show_manifest(manifest, tensor, rank)
        case _:
            raise typer.BadParameter(f"{file} is neither a plan nor a manifest")


def _show_plan(plan: TransferPlan, tensor: str | None, rank: int | None) -> Answer:
    if tensor is not None:
        plan = select_from_plan(plan, tensor)
        if not (plan.edges or plan.fills or plan.derived or plan.unused):
            raise typer.BadParameter(f"no tensor or buffer of the plan matches {tensor!r}")
    if rank is None:
        return Answer([*plan_page(plan, answer_width())], {"document": _members(plan)})
    worlds = {Side.SENDER: plan.sender.world_size, Side.RECEIVER: plan.receiver.world_size}
    sides = [side for side, size in worlds.items() if rank < size]
    if not sides:
        raise typer.BadParameter(f"neither side of the plan has a rank {rank}")
    with progress(len(sides) * len(plan.edges)) as tell:
        parts = {side: shares(plan, side, rank, tell) for side in sides}
    return Answer(
        [*plan_rank_page(plan, rank, parts, answer_width())],
        {
            "document": _members(plan),
            "rank": rank,
            **{side.value: rank_document(side, own) for side, own in parts.items()},
        },
    )


def _show_manifest(manifest: Manifest, tensor: str | None, rank: int | None) -> Answer:
    if tensor is not None:
        manifest = select_from_manifest(manifest, tensor)
        if not (manifest.tensors or manifest.buffers):
            raise typer.BadParameter(f"no tensor or buffer of the manifest matches {tensor!r}")
    if rank is None:
        return Answer([*manifest_page(manifest, answer_width())], {"document": _members(manifest)})
    if rank not in declared_ranks(manifest):
        raise typer.BadParameter(f"the manifest does not speak for a rank {rank}")
    own = manifest_at(manifest, rank)
    page = [*manifest_rank_page(manifest, own, rank, answer_width())]
    return Answer(page, {"document": _members(own), "rank": rank})


def _members(model: BaseModel) -> Json:
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
