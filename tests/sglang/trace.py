"""Trace the weight loading of one rank of an SGLang engine, and write what the rank declares."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.sglang.configs import CONFIGS, Config, checkpoint_sources, write_config
from tranship.runtime.frameworks.sglang.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.sglang.trace import SGLANG
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.ranks import trace_model
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.codec import dump
from tranship.schema.fold import fold


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that say which rank of which engine a script is."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("config", choices=sorted(CONFIGS), help="which configuration")
    result.add_argument("--tp", type=int, default=1, help="number of ranks")
    result.add_argument("--ep", type=int, default=1, help="number of groups of experts")
    result.add_argument("--rank", type=int, default=0, help="which rank")
    return result


def become(config: Config, place: Place) -> Any:
    """Make this process a rank, and return SGLang's ModelConfig."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(config, Path(folder))
        prepare(architecture_of(Path(folder)))
        return boot(Path(folder), place, {})


def write_manifest(model_config: Any, config: Config, place: Place, output: Path) -> None:
    """Write the manifest of the rank that this process has become."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(config, Path(folder))
        request = TraceRequest(
            folder=Path(folder),
            tp=place.tp,
            ep=place.ep,
            ranks=(place.rank,),
            arguments={},
            sources=checkpoint_sources(config),
            output=output.parent,
        )
        declared = trace_model(SGLANG, build_model(model_config, "meta"), request, place.rank)
    output.write_bytes(dump(fold(declared)))


def main() -> None:
    """Run as a script."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("output", type=Path, help="the manifest to write")
    given = arguments.parse_args()
    config, place = CONFIGS[given.config], Place(given.tp, given.ep, given.rank)
    write_manifest(become(config, place), config, place, given.output)


if __name__ == "__main__":
    main()
