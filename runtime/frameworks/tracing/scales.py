"""The scales of a checkpoint: by what names its tensors go, and how many a weight has."""

from collections.abc import Mapping

from tranship.schema.records import Ints

SCALE_SUFFIX = "_scale_inv"
"""What a checkpoint appends to a weight's name to name the weight's block scales."""


def misfit(name: str, shapes: Mapping[str, Ints], block: Ints | None) -> str | None:
    """Say what is wrong with a tensor of scales that are not one per block of their weight.

    Args:
        name: The tensor of scales.
        shapes: Shapes of all tensors of the checkpoint, by name.
        block: Rows and columns that share a scale.
    """
    weight = shapes.get(name.removesuffix(SCALE_SUFFIX))
    if weight is not None and shapes[name] == _grid(weight, block):
        return None
    return f"{name} does not hold one scale per block of {block} of its weight"


def _grid(shape: Ints, block: Ints | None) -> Ints | None:
    if block is None or len(shape) != len(block):
        return None
    return tuple(-(-size // by) for size, by in zip(shape, block, strict=True))
