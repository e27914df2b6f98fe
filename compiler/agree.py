"""Whether both sides mean the same modules when they say that a model is quantized."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import product

from tranship.compiler.inputs import Inputs
from tranship.schema import indexset
from tranship.schema.diagnostics import Diagnostic, Label
from tranship.schema.expression import evaluate
from tranship.schema.manifest import Quantization, Side
from tranship.schema.rules.nametables import split_name

Texts = tuple[str, ...]
Modules = dict[Texts, set[tuple[int, ...]]]
"""Numbers in names, by the texts around them."""


def agree(inputs: Inputs) -> list[Diagnostic]:
    """Compare the modules that the two sides leave unquantized, module by module (TS206).

    There is nothing to compare where only one side declares a quantization: a trainer in BF16 has
    none, and its weights are quantized on their way.
    """
    sender, receiver = inputs.sender.quantization, inputs.receiver.quantization
    if sender is None or receiver is None:
        return []
    left = {Side.SENDER: _modules(sender), Side.RECEIVER: _modules(receiver)}
    return [
        *_only(inputs, Side.SENDER, left, quantizer=Side.RECEIVER),
        *_only(inputs, Side.RECEIVER, left, quantizer=Side.SENDER),
    ]


def _modules(quantization: Quantization) -> Modules:
    modules: Modules = defaultdict(set)
    for family in quantization.unquantized:
        template = split_name(family.name)
        sets = [indexset.parse(members) for members in family.indices.values()]
        for chosen in product(*sets):
            values = dict(zip(family.indices, chosen, strict=True))
            modules[template.texts].add(tuple(int(evaluate(h, values, {})) for h in template.holes))
    return modules


def _only(
    inputs: Inputs, side: Side, left: Mapping[Side, Modules], *, quantizer: Side
) -> list[Diagnostic]:
    """Report the families of which `side` alone leaves modules unquantized."""
    found: list[Diagnostic] = []
    for texts, numbers in left[side].items():
        extra = sorted(numbers - left[quantizer].get(texts, set()))
        if not extra:
            continue
        name = _name(texts, extra[0])
        more = f" and {len(extra) - 1:,} more like it" if len(extra) > 1 else ""
        found.append(
            Diagnostic(
                "TS206",
                f"module {name!r}{more} is quantized by the {quantizer} alone",
                inputs.at(quantizer, "/quantization"),
                expected="the same modules on both sides",
                found=f"the {side} lists it as unquantized",
                labels=(Label(inputs.at(side, "/quantization"), f"the {side}'s list"),),
                help="list the module as not converted for both frameworks, or for neither",
            )
        )
    return found


def _name(texts: Texts, numbers: tuple[int, ...]) -> str:
    holes = [str(number) for number in numbers] + [""]
    return "".join(text + hole for text, hole in zip(texts, holes, strict=True))
