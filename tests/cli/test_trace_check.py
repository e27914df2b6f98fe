"""`tranship trace --check`: what is compared with must be right itself, and is read first."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.outcome import run
from tranship.schema.codec import load
from tranship.schema.manifest import Manifest

Damage = Callable[[dict[str, Any]], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of two small tensors, with the manifest that was traced of it."""
    (tmp_path / "config.json").write_text('{"architectures": ["Small"]}')
    shapes = {"first.weight": (6, 4), "second.weight": (4,)}
    write_checkpoint(tmp_path, shapes)
    assert trace(tmp_path, "-o").status == 0
    return tmp_path


def write_checkpoint(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(end)
    (folder / "model.safetensors").write_bytes(data)


def trace(folder: Path, to: str, file: str = "engine.json", *more: str) -> Any:
    return run("trace", "checkpoint", "-c", str(folder), to, str(folder / file), *more)


def first_family(fields: dict[str, Any]) -> dict[str, Any]:
    return next(family for family in fields["buffers"] if len(family["shape"]) == 2)


def set_shape(fields: dict[str, Any]) -> None:
    first_family(fields)["shape"] = [5, 4]


def set_offset(fields: dict[str, Any]) -> None:
    first_family(fields)["pieces"][0]["offset"] = 3


def forget_tensor(fields: dict[str, Any]) -> None:
    fields["tensors"].pop()


def break_expression(fields: dict[str, Any]) -> None:
    first_family(fields)["shape"] = ["6 +", 4]


def add_rank(fields: dict[str, Any]) -> None:
    fields["ranks"] = "0..3"


@pytest.mark.parametrize(
    "damage", [set_shape, set_offset, forget_tensor, break_expression, add_rank]
)
@pytest.mark.parametrize("form", ["human", "json"])
def test_a_manifest_that_was_damaged_is_reported_as_by_check(
    model: Path, damage: Damage, form: str
) -> None:
    file = model / "engine.json"
    assert trace(model, "--check").status == 0
    fields = json.loads(file.read_text())
    damage(fields)
    file.write_text(json.dumps(fields))
    wanted = run("check", str(file), "--format", form)
    found = trace(model, "--check", "engine.json", "--format", form)
    assert found.status == wanted.status == 1
    codes = {word for word in (wanted.out + wanted.err).replace('"', " ").split() if "TS" in word}
    assert codes
    assert codes <= {*(found.out + found.err).replace('"', " ").split()}
    assert "Traceback" not in found.err


def test_what_is_compared_with_is_read_before_anything_is_traced(model: Path) -> None:
    (model / "model.safetensors").unlink()
    for file, code in (("none.json", "TS100"), ("config.json", "TS111")):
        found = trace(model, "--check", file)
        assert found.status in (1, 2)
        assert code in found.err
    assert "TS857" in trace(model, "--check").err


def test_a_change_names_what_was_traced_and_no_file_that_is_gone(model: Path) -> None:
    write_checkpoint(model, {"first.weight": (6, 4), "second.weight": (5,)})
    found = trace(model, "--check")
    assert found.status == 3
    assert f"{model / 'engine.json'} -> what is traced" in " ".join(found.out.split())
    assert load(model / "engine.json", Manifest).value.world_size == 1


def test_a_file_of_another_format_is_refused(model: Path) -> None:
    (model / "policy.json").write_text('{"format": "tranship.policy/1", "allow": []}')
    found = trace(model, "--check", "policy.json")
    assert (found.status, "TS914" in found.err) == (2, True), found
