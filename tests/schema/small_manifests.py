"""A small receiver and a small sender without errors, and a way to change one thing in them."""

import json
from typing import Any

from tranship.schema.check import check_manifest
from tranship.schema.manifest import Manifest

Json = dict[str, Any]
GONE = object()

QK = "layers.{layer}.qk.weight"
EXPERT = "layers.{layer}.experts.{expert}."
LAYERS = {"layer": "0..2"}
EXPERTS = {"layer": "1..2", "expert": "0..7"}
TENSORS: list[Json] = [
    {"name": "embed.weight", "shape": [1000, 512]},
    {"name": "head.weight", "shape": [1000, 512], "tied_to": "embed.weight"},
    {"name": "layers.{layer}.q.weight", "indices": LAYERS, "shape": [512, 512]},
    {"name": "layers.{layer}.k.weight", "indices": LAYERS, "shape": [256, 512]},
    {"name": EXPERT + "gate.weight", "indices": EXPERTS, "shape": [192, 512]},
    {"name": EXPERT + "up.weight", "indices": EXPERTS, "shape": [192, 512]},
]


def expert_piece(tensor: str, part: str, extent: list[int], offset: int, size: int) -> Json:
    return {
        "tensor": EXPERT + tensor,
        "part": part,
        "indices": {"expert": "0..7"},
        "at": {"ep": "expert // 2"},
        "start": [0, 0],
        "extent": extent,
        "offset": f"expert % 2 * {size} + {offset}",
    }


def scaled(name: str, scale: str, **fields: Any) -> Json:
    encoding = {"kind": "scaled", "block": [128, 128], "scale": scale}
    return {"name": name, "dtype": "f8e4m3fn", "encoding": encoding, **fields}


def scales(name: str, of: str, **fields: Any) -> Json:
    return {"name": name, "dtype": "f32", "encoding": {"kind": "scale", "of": of}, **fields}


def rows(tensor: str, start: str, extent: list[int], part: str = "value", offset: int = 0) -> Json:
    piece = {"tensor": tensor, "start": [start, 0], "extent": extent, "offset": offset}
    return {**piece, "part": part} if part == "scale" else piece


# An engine at tp 2 and ep 4: padded vocabulary, tied head, fused q and k, stacked experts whose
# 192 rows take 2 rows of scales each.
RECEIVER: Json = {
    "format": "tranship.manifest/1",
    "side": "receiver",
    "world_size": 4,
    "axes": [{"name": "tp", "size": 2, "stride": 1}, {"name": "ep", "size": 4, "stride": 1}],
    "tables": {"held": [512, 488]},
    "tensors": TENSORS,
    "buffers": [
        {
            "name": "embed.weight",
            "dtype": "bf16",
            "shape": [512, 512],
            "pieces": [
                {"tensor": "embed.weight", "start": ["tp * 512", 0], "extent": ["held[tp]", 512]}
            ],
            "fills": [
                {
                    "offset": "held[tp] * 512",
                    "sizes": ["512 - held[tp]", 512],
                    "strides": [512, 1],
                    "value": 0,
                }
            ],
        },
        {
            "name": "head.weight",
            "dtype": "bf16",
            "shape": [512, 512],
            "role": {"kind": "alias", "of": "embed.weight"},
        },
        scaled(
            QK,
            QK + "_scale_inv",
            indices=LAYERS,
            shape=[384, 512],
            pieces=[
                rows("layers.{layer}.q.weight", "tp * 256", [256, 512]),
                rows("layers.{layer}.k.weight", "tp * 128", [128, 512], offset=256 * 512),
            ],
        ),
        scales(
            QK + "_scale_inv",
            QK,
            indices=LAYERS,
            shape=[3, 4],
            pieces=[
                rows("layers.{layer}.q.weight", "tp * 2", [2, 4], "scale"),
                rows("layers.{layer}.k.weight", "tp", [1, 4], "scale", offset=8),
            ],
        ),
        {
            "name": "layers.{layer}.qk.absorbed",
            "indices": LAYERS,
            "dtype": "bf16",
            "shape": [384, 512],
            "kind": "attribute",
            "role": {"kind": "derived", "recipe": "absorb", "inputs": [QK, QK + "_scale_inv"]},
        },
        {
            "name": "rope",
            "dtype": "f32",
            "shape": [64],
            "role": {"kind": "constant", "reason": "computed from the configuration"},
        },
        scaled(
            "layers.{layer}.w13",
            "layers.{layer}.w13_scale",
            indices={"layer": "1..2"},
            shape=[2, 384, 512],
            pieces=[
                expert_piece("gate.weight", "value", [192, 512], 0, 384 * 512),
                expert_piece("up.weight", "value", [192, 512], 192 * 512, 384 * 512),
            ],
        ),
        scales(
            "layers.{layer}.w13_scale",
            "layers.{layer}.w13",
            indices={"layer": "1..2"},
            shape=[2, 4, 4],
            pieces=[
                expert_piece("gate.weight", "scale", [2, 4], 0, 16),
                expert_piece("up.weight", "scale", [2, 4], 8, 16),
            ],
        ),
    ],
}

# A trainer at pp 2, tp 2, ep 4: layers counted within a stage, experts within a rank, q and k of a
# query group side by side, and both ends of the tie on their stages.
SENDER: Json = {
    "format": "tranship.manifest/1",
    "side": "sender",
    "world_size": 8,
    "axes": [
        {"name": "tp", "size": 2, "stride": 1},
        {"name": "ep", "size": 4, "stride": 1},
        {"name": "pp", "size": 2, "stride": 4},
    ],
    "tables": {"stage": [0, 0, 1]},
    "tensors": TENSORS,
    "buffers": [
        {
            "name": "embedding.weight",
            "at": {"pp": 0},
            "dtype": "bf16",
            "shape": [500, 512],
            "pieces": [rows("embed.weight", "tp * 500", [500, 512])],
        },
        {
            "name": "output.weight",
            "at": {"pp": 1},
            "dtype": "bf16",
            "shape": [500, 512],
            "pieces": [rows("head.weight", "tp * 500", [500, 512])],
        },
        {
            "name": "decoder.{layer % 2}.qk",
            "indices": LAYERS,
            "at": {"pp": "stage[layer]"},
            "dtype": "bf16",
            "shape": [384, 512],
            "pieces": [
                {
                    "tensor": f"layers.{{layer}}.{part}.weight",
                    "indices": {"group": "0..3"},
                    "at": {"tp": "group // 2"},
                    "start": [f"group * {size}", 0],
                    "extent": [size, 512],
                    "offset": f"group % 2 * 98304 + {offset}",
                }
                for part, size, offset in (("q", 128, 0), ("k", 64, 128 * 512))
            ],
        },
        {
            "name": "decoder.{layer % 2}.fc1.{expert % 2}",
            "indices": EXPERTS,
            "at": {"pp": "stage[layer]", "ep": "expert // 2"},
            "dtype": "bf16",
            "shape": [384, 512],
            "pieces": [
                rows(EXPERT + "gate.weight", "0", [192, 512]),
                rows(EXPERT + "up.weight", "0", [192, 512], offset=192 * 512),
            ],
        },
    ],
}

Change = tuple[str, object]


def changed(data: Json, *changes: Change) -> Json:
    """Set the values at JSON pointers; "-" appends, GONE removes."""
    data = json.loads(json.dumps(data))  # a deep copy in which no two parts are one
    for pointer, value in changes:
        *path, last = pointer.split("/")[1:]
        node: Any = data
        for part in path:
            node = node[int(part) if isinstance(node, list) else part]
        if last == "-":
            node.append(value)
        elif value is GONE:
            del node[int(last) if isinstance(node, list) else last]
        else:
            node[int(last) if isinstance(node, list) else last] = value
    return data


def model(data: Json) -> Manifest:
    return Manifest.model_validate_json(json.dumps(data))


def found(data: Json) -> list[tuple[str, str]]:
    return [(d.code, d.at.pointer) for d in check_manifest(model(data)) if d.at is not None]
