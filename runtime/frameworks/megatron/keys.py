"""From the keys of Megatron-core's checkpoints to the names in a manifest of the whole model.

A key is a name without the numbers along which Megatron stacks tensors: `linear_proj.weight` of
layer 3 has the key `decoder.layers.self_attention.linear_proj.weight`, and is number 3. Which
numbers are left out depends on the model: if layers differ, theirs is not. So every name is known
by all forms that it has without some of its numbers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from tranship.schema.nearest import nearest
from tranship.schema.records import Ints

ENDINGS: Mapping[str, str] = {
    # Experts lie in a module of all experts, and this in the layer that routes to them.
    "mlp.experts.experts.linear_fc1.weight": "mlp.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc1.bias": "mlp.experts.linear_fc1.bias",
    "mlp.experts.experts.linear_fc2.weight": "mlp.experts.linear_fc2.weight",
    "mlp.experts.experts.linear_fc2.bias": "mlp.experts.linear_fc2.bias",
    # Norms that Transformer Engine fuses with the linear layer behind them; layers of plain torch
    # save some of them by the fused name, and some not.
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.q_layernorm.weight": "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.kv_layernorm.weight": "self_attention.linear_kv_up_proj.layer_norm_weight",
}
"""Ends of keys, in whole parts, and what the names of the same tensors end in instead.

They are Megatron-core 0.16.1's, for models built from both of its specifications. The name as it
stands comes first.
"""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of the whole model by their keys and numbers, and other ends that keys may have."""

    names: Mapping[str, Mapping[Ints, str]]
    endings: Mapping[str, str]

    def find(self, key: str, numbers: Ints) -> str | None:
        """Return the name of the tensor that is number `numbers` of `key`."""
        found = (self.names.get(text, {}).get(numbers) for text in self._spellings(key))
        return next((name for name in found if name is not None), None)

    def counts(self, key: str, numbers: Ints) -> Ints | None:
        """Return how many tensors there are along each stacked axis of `key`, if there are any."""
        for text in self._spellings(key):
            if known := [held for held in self.names.get(text, {}) if len(held) == len(numbers)]:
                return tuple(max(column) + 1 for column in zip(*known, strict=True))
        return None

    def close(self, key: str, numbers: Ints) -> tuple[str, ...]:
        """Return the names nearest to `key` of what could be number `numbers` of it."""
        texts = [text for text, held in self.names.items() if numbers in held]
        return tuple(self.names[text][numbers] for text in nearest(key, texts))

    def _spellings(self, key: str) -> Iterator[str]:
        yield from _ended(key, self.endings)
        yield key
        yield from _ended(key, ENDINGS)


def _ended(key: str, endings: Mapping[str, str]) -> Iterator[str]:
    for old, new in endings.items():
        if key == old or key.endswith("." + old):
            yield key.removesuffix(old) + new


def keys_of(names: Iterable[str], endings: Mapping[str, str]) -> Keys:
    """Index names by every key that they may have; `endings` come before the name itself."""
    found: defaultdict[str, dict[Ints, str]] = defaultdict(dict)
    for name in names:
        for text, numbers in _forms(name):
            found[text][numbers] = name
    return Keys(found, endings)


_NUMBER = re.compile(r"(?<=\.)\d+\.|(?<=\D)\d+$")
"""A number that is a part of a name, with the dot behind it, or that ends a name."""


def _forms(name: str) -> Iterator[tuple[str, Ints]]:
    """Yield a name without each set of its numbers, and these.

    `layers.3.experts.weight5` gives `layers.experts.weight` and (3, 5), `layers.3.experts.weight`
    and (5,), `layers.experts.weight5` and (3,), and itself.
    """
    found = list(_NUMBER.finditer(name))
    for count in range(len(found) + 1):
        for chosen in combinations(found, count):
            text, end = "", 0
            for match in chosen:
                text, end = text + name[end : match.start()], match.end()
            yield text + name[end:], tuple(int(match.group().rstrip(".")) for match in chosen)
