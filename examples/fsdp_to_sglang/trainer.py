"""One rank of the trainer: a model under `fully_shard`, and a real optimizer.

    python -m examples.fsdp_to_sglang.trainer RANK FOLDER PORT

The model is plain torch with the names of Qwen3-MoE's checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from examples.live.place import WORLD, enter
from examples.live.trainer import Training, train
from tranship.demo.config import SEQUENCE, ModelConfig
from tranship.demo.trainer_model import TrainerModel
from tranship.runtime.frameworks.fsdp import fsdp_declaration, mesh_axes


def main() -> None:
    """Build and shard the model, and train it."""
    place = enter("trainer")
    place.join()
    torch.manual_seed(0)
    config = ModelConfig()
    model = TrainerModel(config).to(torch.bfloat16)
    mesh = init_device_mesh("cpu", (WORLD.senders,), mesh_dim_names=("shard",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(config.vocab_size, (2, SEQUENCE))
    training = Training(
        held=model,
        declare=lambda: fsdp_declaration(
            model, rank=place.rank, world_size=WORLD.senders, axes=mesh_axes(mesh)
        ),
        step=lambda version: step(model, optimizer, tokens),
        gather=lambda: gather(model),
    )
    train(place, training)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    """Take one optimizer step, and leave the model sharded."""
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    # The root module stays gathered after its forward pass.
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()


def gather(model: nn.Module) -> dict[str, Tensor]:
    """Gather every parameter by DTensor's own means."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        found[name] = parameter.full_tensor().detach()
    return found


if __name__ == "__main__":
    main()
