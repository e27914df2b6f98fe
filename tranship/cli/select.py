"""What of a plan or a manifest is about tensors or buffers of some names."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from tranship.schema.expression import IntArray, evaluate
from tranship.schema.manifest import BufferFamily, Manifest
from tranship.schema.moves import grid_size, index_grid
from tranship.schema.plan import Edge, TransferPlan
from tranship.schema.template import parse_template

Indices = Mapping[str, str]


def select_from_plan(plan: TransferPlan, pattern: str) -> TransferPlan:
    """Keep the edges, fills and steps whose tensor or buffers `pattern` matches."""
    changes = {
        "edges": tuple(edge for edge in plan.edges if _edge_matches(edge, pattern)),
        "fills": tuple(one for one in plan.fills if _any([one.buffer], one.indices, pattern)),
        "derived": tuple(one for one in plan.derived if _any([one.buffer], one.indices, pattern)),
        "unused": tuple(one for one in plan.unused if fnmatchcase(one.tensor, pattern)),
    }
    return plan.model_copy(update=changes)
