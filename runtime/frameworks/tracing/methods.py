"""Which method of a model is running: what made a buffer can be called again."""

import inspect
from types import CodeType

import torch
from torch import nn

from tranship.runtime.live import held_tensors


def running_method(storage: torch.UntypedStorage) -> str | None:
    """Name the method that is running, without arguments, of the module that holds a tensor."""
    frame = inspect.currentframe()
    while frame is not None:
        owner, code = frame.f_locals.get("self"), frame.f_code
        if isinstance(owner, nn.Module) and code.co_varnames[: _arguments(code)] == ("self",):
            held = (tensor.untyped_storage() for _, _, tensor in held_tensors(owner))
            if any(each == storage for each in held):
                return code.co_qualname
        frame = frame.f_back
    return None


def _arguments(code: CodeType) -> int:
    """Return how many arguments of any kind a function takes."""
    more = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_argcount + code.co_kwonlyargcount + more
