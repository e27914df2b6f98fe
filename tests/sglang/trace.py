"""Trace the weight loading of one rank of an SGLang engine, and write what the rank declares."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.sglang.boot import Place, boot, build_model, parser
from tests.sglang.configs import BLOCK, CONFIGS, Config, checkpoint_tensors
from tests.sglang.emit import Engine, declare
from tests.sglang.tracer import trace_load
from tranship.runtime.live import live_tensors
from tranship.schema.codec import dump
from tranship.schema.fold import fold
from tranship.schema.manifest import Framework
from tranship.schema.records import Declaration


def declare_rank(model_config: Any, config: Config, place: Place) -> Declaration:
    """Declare the rank that this process has been booted as."""
    checkpoint = checkpoint_tensors(config)
    model = build_model(model_config, "meta")
    trace = trace_load(model, checkpoint)
    framework = Framework(name="sglang", version=version("sglang"))
    engine = Engine(framework, place.tp, place.axes(), place.rank)
    return declare(engine, live_tensors(model), trace, checkpoint, BLOCK)


def write_manifest(model_config: Any, config: Config, place: Place, output: Path) -> None:
    """Write the manifest of the rank that this process has been booted as."""
    output.write_bytes(dump(fold(declare_rank(model_config, config, place))))


def main() -> None:
    """Run as a script."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("output", type=Path, help="the manifest to write")
    given = arguments.parse_args()
    config, place = CONFIGS[given.config], Place(given.tp, given.ep, given.rank)
    write_manifest(boot(config, place), config, place, given.output)


if __name__ == "__main__":
    main()
