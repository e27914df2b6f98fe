"""What Transformer Engine, which needs GPUs, would put into a model: its parameters and experts.

The stand-ins have the names, attributes and shapes of Transformer Engine's classes, as
Megatron-core 0.16.1 (`extensions/transformer_engine.py`) and AReaL's reader of FP8 parameters use
them. They show that tranship reads these rightly, not that Transformer Engine has them.
"""

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.properties.dense import quantize
from tranship.runtime.live import submodules
from tranship.schema.dtypes import DType
from tranship.schema.testing import Encoding

ENCODING = Encoding(DType.F8E4M3FN, (128, 128))
FORMULA = "divide"


class Float8BlockwiseQTensor(Tensor):
    """A parameter in FP8 without memory of its own; nothing can be done with it but detach it."""

    _rowwise_data: Tensor
    _rowwise_scale_inv: Tensor

    @staticmethod
    def __new__(cls: Any, rows: int, columns: int) -> "Float8BlockwiseQTensor":
        base: Any = Tensor
        made: Any = base._make_wrapper_subclass(cls, (rows, columns), dtype=torch.bfloat16)
        padded = -(-columns // 128 // 4) * 4
        made._rowwise_data = torch.zeros(rows, columns, dtype=torch.uint8)
        made._rowwise_scale_inv = torch.full((-(-rows // 128), padded), float("nan"))
        made._is_2D_scaled = True
        made._fp8_dtype = SimpleNamespace(name="kFloat8E4M3")
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not torch.ops.aten.detach.default:
            raise AssertionError(f"{function} would dequantize the parameter")
        rows, columns = args[0].shape
        made: Any = cls(rows, columns)
        vars(made).update(vars(args[0]))
        return made

    def fill(self, values: Tensor) -> None:
        """Quantize values into the codes and scales."""
        codes, scales = quantize(values, ENCODING, FORMULA)
        self._rowwise_data.copy_(codes.view(torch.uint8))
        self._rowwise_scale_inv[:, : scales.shape[1]] = scales


def hold_in_blocks(chunk: nn.Module, below: str = "decoder.layers.") -> None:
    """Hold the linear layers of a chunk's transformer layers in FP8, but for its routers."""
    for path, module in submodules(chunk):
        name = ".".join(path)
        if name.startswith(below) and not name.endswith(".router"):
            for key, weight in list(module.named_parameters(recurse=False)):
                if weight.dim() == 2:
                    made = nn.Parameter(Float8BlockwiseQTensor(*weight.shape), requires_grad=False)
                    vars(made).update(vars(weight))
                    setattr(module, key, made)


class GroupedLinear(nn.Module):
    """A layer of a rank's experts, all their weights in one module, as `TEGroupedLinear` is."""

    def __init__(self, weights: list[nn.Parameter], rank: int, ranks: int, axis: int) -> None:
        super().__init__()
        self.first, self.count, self.axis = rank * len(weights), ranks * len(weights), axis
        for number, weight in enumerate(weights):
            self.register_parameter(f"weight{number}", weight)

    def sharded_state_dict(self, prefix: str, sharded_offsets: Any, metadata: Any) -> Any:
        """Tell what `TEGroupedLinear._sharded_state_dict_grouped` would, without extra states."""
        utils: Any = importlib.import_module("megatron.core.transformer.utils")
        sharding: Any = importlib.import_module("megatron.core.dist_checkpointing.utils")
        state: Any = importlib.import_module("megatron.core.parallel_state")
        found: dict[str, Any] = {}
        for number, weight in enumerate(self.parameters()):
            offsets = (*sharded_offsets, (len(sharded_offsets), self.first + number, self.count))
            made = utils.make_sharded_tensors_for_checkpoint(
                {f"{number}.weight": weight},
                "",
                {f"{number}.weight": self.axis},
                offsets,
                tp_group=state.get_expert_tensor_parallel_group(),
                dp_cp_group=metadata["dp_cp_group"],
            )
            sharding.replace_prefix_for_sharding(made, f"{number}.", prefix)
            found[f"{prefix}weight{number}"] = made[f"{number}.weight"]
        return found


class GroupedExperts(nn.Module):
    """Experts in two grouped layers, with the checkpoint of Megatron-core's own `TEGroupedMLP`."""

    def __init__(self, sequential: Any) -> None:
        super().__init__()
        state: Any = importlib.import_module("megatron.core.parallel_state")
        self.config, self.num_local_experts = sequential.config, sequential.num_local_experts
        self.ep_group = state.get_expert_model_parallel_group()
        self.tp_group = state.get_expert_tensor_parallel_group()
        for key, axis in (("linear_fc1", 0), ("linear_fc2", 1)):
            weights = [getattr(expert, key).weight for expert in sequential.local_experts]
            linear = GroupedLinear(weights, self.ep_group.rank(), self.ep_group.size(), axis)
            self.add_module(key, linear)

    def sharded_state_dict(self, prefix: str, sharded_offsets: Any, metadata: Any) -> Any:
        """Tell what Megatron-core tells of grouped experts."""
        experts: Any = importlib.import_module("megatron.core.transformer.moe.experts")
        return experts.TEGroupedMLP.sharded_state_dict(self, prefix, sharded_offsets, metadata)


def group_experts(chunk: nn.Module) -> None:
    """Replace the experts of every layer by grouped ones with the same parameters."""
    for module in list(chunk.modules()):
        experts = getattr(module, "experts", None)
        if isinstance(experts, nn.Module):
            module.add_module("experts", GroupedExperts(experts))
