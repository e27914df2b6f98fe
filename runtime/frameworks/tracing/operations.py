"""What an operation of torch is given, and what of that it changes, as a dispatch mode sees it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch


def named_arguments(
    func: Any, args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, object]:
    """Return the arguments of an operation by the names of its schema."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def changed_tensors(func: Any, named: Mapping[str, object]) -> Iterator[torch.Tensor]:
    """Yield the arguments that an operation writes to."""
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in([named.get(argument.name)])


def tensors_in(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments, in lists as well."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(cast("Iterable[object]", value))
