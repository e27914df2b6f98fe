"""One rank of the demo's engine: FP8 weights, forward passes, and a session that receives."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tranship.demo.config import ModelConfig
from tranship.demo.engine_manifest import engine_declaration
from tranship.demo.engine_model import EngineModel
from tranship.demo.process import VERSIONS, Place, declare, enter, probe
from tranship.demo.reference import expected
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver
from tranship.schema.manifest import Side

PROMPT = 4
"""Tokens of a sequence that the engine is given to continue."""


def main() -> None:
    """Serve, receive, serve again; at last compare every byte with the reference."""
    place = enter(Side.RECEIVER)
    config = ModelConfig()
    model = EngineModel(config, place.rank, _all_reduce)
    plan, manifest = declare(place, engine_declaration(model))
    receiver = Receiver.bind(plan, manifest, live_tensors(model), place.connect(), place.rank)
    tokens = probe(config)
    for version in VERSIONS:
        stale = _logits(model, tokens) if receiver.serving_allowed else None
        stats = receiver.receive(version)
        fresh = _logits(model, tokens)
        wanted = torch.from_numpy(np.load(place.logits_path(version), allow_pickle=False))
        place.report(
            "received",
            version=version,
            state=receiver.state.value,
            received=stats.bytes_received,
            seconds=dict(stats.seconds),
            digest=stats.digest,
            before=None if stale is None else _distance(stale, wanted),
            after=_distance(fresh, wanted),
            right=_continued(model, tokens),
        )
    _compare(place, config, model)
    dist.destroy_process_group()


def _all_reduce(x: Tensor) -> Tensor:
    wide = x.float()
    dist.all_reduce(wide)
    return wide.to(x.dtype)


def _logits(model: EngineModel, tokens: Tensor) -> Tensor:
    """Logits over the true vocabulary, gathered from all ranks."""
    with torch.no_grad():
        mine = model(tokens).float().contiguous()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return torch.cat(parts, dim=-1)[..., : model.config.vocab_size]


def _distance(got: Tensor, wanted: Tensor) -> float:
    """Relative Frobenius distance of two sets of logits."""
    size = torch.dist(wanted, torch.zeros_like(wanted))
    return torch.dist(got, wanted).item() / size.item()


def _continued(model: EngineModel, tokens: Tensor) -> list[int]:
    """Continue the first sequence greedily: how many tokens are those of the training data."""
    text = tokens[:1, :PROMPT]
    while text.shape[1] < tokens.shape[1]:
        choice = _logits(model, text)[:, -1].argmax(-1, keepdim=True)
        text = torch.cat([text, choice], dim=1)
    right = torch.eq(text[:, PROMPT:], tokens[:1, PROMPT:]).sum().item()
    return [int(right), tokens.shape[1] - PROMPT]


def _compare(place: Place, config: ModelConfig, model: EngineModel) -> None:
    """Compare every parameter with the reference made from the gathered checkpoint."""
    place.store.wait(["checkpoint"])
    checkpoint = {
        path.name.removesuffix(".npy"): _bf16(np.load(path, allow_pickle=False))
        for path in place.checkpoint.glob("*.npy")
    }
    wanted = expected(config, checkpoint, place.rank)
    held = {name: tensor.detach() for name, tensor in model.named_parameters()}
    assert held.keys() == wanted.keys(), "the reference names every parameter of the engine"
    different = [name for name in held if not torch.equal(_bytes(held[name]), _bytes(wanted[name]))]
    total = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    place.report("compared", tensors=len(held), bytes=total, different=different)


def _bf16(bits: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


if __name__ == "__main__":
    main()
