"""What a model's config.json says of its class and of its quantization."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from tranship.schema.records import Ints


def architecture_of(folder: Path) -> str:
    """Return the name of the model class that a folder's config.json asks for."""
    architectures = cast("list[str]", _config(folder)["architectures"])
    return architectures[0]


def model_type_of(folder: Path) -> str:
    """Return the type of the model of text that config.json describes, or "" if it names none."""
    config = _config(folder)
    text = cast("Mapping[str, object] | None", config.get("text_config")) or config
    return str(text.get("model_type", ""))


def block_of(folder: Path) -> Ints | None:
    """Return the rows and columns that share a scale, as config.json has them, if any do."""
    block = cast("list[int] | None", _quantization(folder).get("weight_block_size"))
    return tuple(block) if block else None


def method_of(folder: Path) -> str | None:
    """Return the name of the quantization by blocks that config.json asks for, if it does."""
    block, power_of_two = block_of(folder), _quantization(folder).get("scale_fmt") == "ue8m0"
    if block is None:
        return None
    sizes = "x".join(map(str, dict.fromkeys(block)))
    return f"fp8-block{sizes}{'-ue8m0' if power_of_two else ''}"


def _quantization(folder: Path) -> Mapping[str, object]:
    return cast("Mapping[str, object] | None", _config(folder).get("quantization_config")) or {}


def _config(folder: Path) -> Mapping[str, object]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
