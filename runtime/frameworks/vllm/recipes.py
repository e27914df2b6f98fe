"""How vLLM recomputes what it derives from weights: the recipes of a plan (vLLM 0.33.0).

Latent attention keeps two tensors for absorbed projections, which it makes of `kv_b_proj` after
loading: views of it in BF16, and new tensors of weights in FP8. Made once more they are written
where they are, so that CUDA graphs stay valid (model_executor/utils.py, `replace_parameter`).
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tranship.runtime.execute import Recipe
from tranship.runtime.frameworks.attributes import find_attributes
from tranship.runtime.frameworks.tracing.derived import Derivation
from tranship.runtime.live import submodules

POST_LOAD = "process_weights_after_loading"
LATENT_ATTENTION = f"MLAAttention.{POST_LOAD}"
"""The recipe of all that is derived."""


def find_derivations(model: nn.Module) -> tuple[Derivation, ...]:
    """Return what makes derived tensors in a model that was built for a CPU, as on a GPU."""
    dtype = next(model.parameters()).dtype
    found = list(_latent_attention(model))
    for attention in found:
        # Kernels for CPUs keep weights in a form of their own, and nothing else.
        attention.is_amx_bmm_enabled = False
        attention.impl.process_weights_after_loading = _pack_nothing
    calls = [partial(attention.process_weights_after_loading, dtype) for attention in found]
    return tuple(Derivation(LATENT_ATTENTION, call) for call in calls)


def multiply_by_deepgemm(model: nn.Module) -> None:
    """Let latent attention of a model on the meta device be prepared as where DeepGEMM is.

    vLLM then has the layer multiply an identity, whichever kernel does it, and keeps the result,
    which lies otherwise in memory than what it dequantizes (quant_utils.py,
    get_and_maybe_dequant_weights).
    """
    for attention in _latent_attention(model):
        method = attention.kv_b_proj.quant_method
        if type(method).__name__ == "Fp8LinearMethod":
            method.use_deep_gemm = True
            method.apply = _product


def _product(layer: Any, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what has the shape, the layout and the origins of a product with a layer's weights."""
    del bias
    found = rows.new_empty(len(rows), len(layer.weight))
    return found.copy_(layer.weight.to(rows.dtype).sum() * layer.weight_scale_inv.sum())


def _pack_nothing(dtype: torch.dtype) -> None:
    """Stand in for a kernel's own preparation of weights."""


class AbsorbedWeights:
    """Recomputes the derived tensors of a model, each layer's once in a step."""

    def __init__(self, model: nn.Module) -> None:
        self._owners = {
            tensor.data_ptr(): attention
            for attention in _latent_attention(model)
            for tensor in attention.parameters(recurse=False)
        }
        self._attributes = {
            id(attention): [place for held in find_attributes(attention).values() for place in held]
            for attention in self._owners.values()
        }
        self._done: set[int] = set()

    def begin(self) -> None:
        """Begin a step."""
        self._done.clear()

    def __call__(self, buffer: Tensor, *_: Tensor) -> None:
        """Recompute `buffer`, and what its layer makes beside it, in place."""
        attention = self._owners[buffer.data_ptr()]
        if id(attention) not in self._done:
            self._done.add(id(attention))
            attention.process_weights_after_loading(buffer.dtype)
            # It makes the default scales of the cache anew, too.
            for place in self._attributes[id(attention)]:
                place.put_back()

    def recipes(self, names: Iterable[str]) -> Mapping[str, Recipe]:
        """Return those of the recipes that the model has."""
        return {name: self for name in names if name == LATENT_ATTENTION and self._owners}


def _latent_attention(model: nn.Module) -> Iterator[Any]:
    for _, module in submodules(model):
        method = getattr(module, POST_LOAD, None)
        if getattr(method, "__qualname__", "") == LATENT_ATTENTION:
            yield module
