"""`tranship show`: a plan or a manifest in words."""

from collections.abc import Callable, Iterator
from typing import cast

import typer
from pydantic import BaseModel
from rich.text import Text

from tranship.cli.at_rank import manifest_at
from tranship.cli.load import check_document, load_any, raise_errors
from tranship.cli.output import Answer, answer_width
from tranship.cli.progress import progress
from tranship.cli.select import select_from_manifest, select_from_plan
from tranship.cli.show_manifest import manifest_page, manifest_rank_page
from tranship.cli.show_plan import plan_page
from tranship.cli.show_rank import rank_document, rank_page, shares
from tranship.schema.canonical import Json
from tranship.schema.codec import dump, parse_json
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
    raise_errors(check_document(document))
    match document.value:
        case TransferPlan() as plan:
            chosen = _some(file, tensor, plan, select_from_plan)
            return _show_plan(file, chosen) if rank is None else _show_plan_rank(file, chosen, rank)
        case Manifest() as manifest:
            chosen = _some(file, tensor, manifest, select_from_manifest)
            return _show_manifest(file, chosen, rank)
        case _:
            raise typer.BadParameter(f"{file} is neither a plan nor a manifest")


T = TypeVar("T", TransferPlan, Manifest)
