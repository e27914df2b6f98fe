"""Whole forward passes of an SGLang model on a GPU, from tokens to logits, without a server.

Attention is torch's, over the tokens of the pass alone: there is no cache. Everything else is the
engine's own code.
"""

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

TOKENS = 24

Pass = Callable[[], Tensor]
"""Runs a model on the same tokens, and returns logits, float32 `[tokens, vocabulary]`."""


def replace_attention() -> None:
    """Let all layers attend with torch's kernels."""
    importlib.import_module("sglang.srt.layers.radix_attention").RadixAttention.forward = _attend


def _attend(
    layer: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forward_batch: object,
    save_kv_cache: bool = True,
    **parts: Any,
) -> Tensor:
    """Attend to earlier tokens, as `RadixAttention.forward` does (layers/radix_attention.py)."""
    del forward_batch, save_kv_cache
    queries, keys = _heads(q, layer.tp_q_head_num), _heads(k, layer.tp_k_head_num)
    if parts.get("q_rope") is not None:
        queries = torch.cat([queries, _heads(parts["q_rope"], layer.tp_q_head_num)], -1)
        keys = torch.cat([keys, _heads(parts["k_rope"], layer.tp_k_head_num)], -1)
    values = _heads(v, layer.tp_v_head_num)
    shared = layer.tp_q_head_num // layer.tp_k_head_num
    found = torch.nn.functional.scaled_dot_product_attention(
        queries.transpose(0, 1).float(),
        keys.repeat_interleave(shared, 1).transpose(0, 1).float(),
        values.repeat_interleave(shared, 1).transpose(0, 1).float(),
        is_causal=True,
        scale=layer.scaling,
    )
    return found.transpose(0, 1).flatten(1).to(q.dtype)


def _heads(tensor: Tensor, count: int) -> Tensor:
    return tensor.reshape(len(tensor), count, -1)


def forward_pass(model: Any) -> Pass:
    """Return what runs a model, which nothing else runs."""
    for layer in model.model.layers:
        attention = layer.self_attn
        if hasattr(attention, "dispatch_attn_forward_method"):
            attention.dispatch_attn_forward_method = _absorbed
    batch, context = _batch(), _context()
    forward_context = importlib.import_module("sglang.srt.model_executor.forward_context")

    def run() -> Tensor:
        with forward_context.forward_context(context):
            hidden = model.model(batch.input_ids, batch.positions, batch)
        hidden = hidden if isinstance(hidden, Tensor) else hidden[0]
        return hidden.float() @ model.lm_head.weight.float().T

    return run


def _absorbed(forward_batch: object) -> object:
    """Choose the way of latent attention that uses what is derived from weights."""
    del forward_batch
    methods = importlib.import_module(
        "sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods"
    )
    return methods.AttnForwardMethod.MLA


def _batch() -> Any:
    """Return one request of a few tokens, without a cache."""
    info = importlib.import_module("sglang.srt.model_executor.forward_batch_info")
    places = torch.arange(TOKENS, device="cuda")
    batch = info.ForwardBatch(
        forward_mode=info.ForwardMode.EXTEND,
        batch_size=1,
        input_ids=places * 37 % 1000,
        req_pool_indices=torch.zeros(1, dtype=torch.int64, device="cuda"),
        seq_lens=torch.tensor([TOKENS], device="cuda"),
        out_cache_loc=places,
        seq_lens_sum=TOKENS,
    )
    batch.positions = places
    batch.extend_num_tokens = batch.global_num_token_non_padded_cpu = TOKENS
    return batch


def _context() -> Any:
    """Return what layers ask about the attention's backend, which is not there."""
    backend = SimpleNamespace(
        token_to_kv_pool=SimpleNamespace(dtype=torch.float16),
        prefill_attention_backend_str="triton",
        decode_attention_backend_str="triton",
    )
    module = importlib.import_module("sglang.srt.model_executor.forward_context")
    return module.ForwardContext(attn_backend=backend)


class Captured:
    """A forward pass in a CUDA graph, captured once."""

    def __init__(self, run: Pass) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Kernels are compiled and tuned when they first run.
            run()
            run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = run()

    def __call__(self) -> Tensor:
        """Run it once more."""
        self._graph.replay()
        return self._logits.clone()
