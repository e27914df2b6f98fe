"""Trace the weight loading of one rank of an SGLang engine, and write what the rank declares."""

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.sglang.boot import Place, boot, build_model, parser
from tests.sglang.configs import BLOCK, CONFIGS, Config, checkpoint_tensors
from tests.sglang.emit import Engine, declare
from tests.sglang.inventory import inventory, originals
from tests.sglang.tracer import Trace, TraceError, Tracer
from tranship.schema.manifest import Axis, Framework
from tranship.schema.records import Declaration


def trace_load(model: Any, checkpoint: Mapping[str, torch.Tensor]) -> Trace:
    """Run a meta model's `load_weights` on a meta checkpoint and record what it copies.

    Raises:
        TraceError: the loading is not copies of boxes, or moves a tensor to other memory.
    """
    before = inventory(model)
    names = set(originals(before).values())
    buffers = {entry.name: entry.tensor for entry in before if entry.name in names}
    with Tracer(buffers, checkpoint) as tracer:
        model.load_weights(iter(checkpoint.items()))
    places = [{(entry.name, entry.identity) for entry in held} for held in (before, inventory(model))]
    if moved := {name for name, _ in places[0] ^ places[1]}:
        raise TraceError(f"loading gives other memory to {', '.join(sorted(moved))}")
    return tracer.trace()


def declare_rank(model_config: Any, config: Config, place: Place) -> Declaration:
    """Declare one rank, in the process that has been booted as that rank."""
    checkpoint = checkpoint_tensors(config)
    model = build_model(model_config, "meta")
    trace = trace_load(model, checkpoint)
    framework = Framework(name="sglang", version=version("sglang"))
    engine = Engine(framework, place.tp, place.axes(), place.rank)
    return declare(engine, inventory(model), trace, checkpoint, BLOCK)


def to_json(declaration: Declaration) -> str:
    """Write a declaration as JSON, field by field."""

    def plain(value: Axis | Framework) -> dict[str, object]:
        return value.model_dump()

    return json.dumps(dataclasses.asdict(declaration), default=plain, indent=1)


def main() -> None:
    """Run as a script."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("output", type=Path, help="the JSON file to write")
    given = arguments.parse_args()
    config, place = CONFIGS[given.config], Place(given.tp, given.ep, given.rank)
    given.output.write_text(to_json(declare_rank(boot(config, place), config, place)))


if __name__ == "__main__":
    main()
