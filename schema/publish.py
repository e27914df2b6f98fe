"""The published JSON Schemas (draft 2020-12) of the five file formats, generated from the models.

They say all that a JSON Schema can. A reader may still refuse what they accept: numbers written
with a fraction where an integer belongs (1.0, which JSON Schema counts as an integer), and
whatever the rules in `check.py` forbid.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from tranship.schema.manifest import MANIFEST_FORMAT, Manifest
from tranship.schema.placement import PLACEMENT_FORMAT, Placement
from tranship.schema.plan import PLAN_FORMAT, TransferPlan
from tranship.schema.policy import POLICY_FORMAT, Policy
from tranship.schema.transfer import TRANSFER_FORMAT, Transfer

JsonSchema = dict[str, Any]
"""A JSON Schema; what a value is depends on its keyword."""

MODELS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        MANIFEST_FORMAT: Manifest,
        POLICY_FORMAT: Policy,
        PLACEMENT_FORMAT: Placement,
        TRANSFER_FORMAT: Transfer,
        PLAN_FORMAT: TransferPlan,
    }
)
"""The model of every document, by what its field "format" says."""

NAMES = tuple(name.removeprefix("tranship.").partition("/")[0] for name in MODELS)
"""The short names of the formats: "manifest" for "tranship.manifest/1"."""


def file_name(name: str) -> str:
    """Return the name of the file that holds the schema of format `name`."""
    return f"{name}.schema.json"


def json_schema(name: str) -> JsonSchema:
    """Generate the schema of the format with the short name `name`.

    Raises:
        KeyError: there is no such format.
    """
    model = dict(zip(NAMES, MODELS.values(), strict=True))[name]
    schema = model.model_json_schema(schema_generator=_Untitled)
    for part in list(_subschemas(schema)):
        if "patternProperties" in part:
            part["additionalProperties"] = False
        if "description" in part:
            part["description"] = _unwrapped(part["description"])
        _spell_out_tags(part, schema["$defs"])
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": f"tranship {name}"}


def published_bytes(name: str) -> bytes:
    """Generate the file that publishes the schema of format `name`.

    Raises:
        KeyError: there is no such format.
    """
    return (json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n").encode()


def committed_bytes(name: str) -> bytes | None:
    """Read the published file that lies beside this module; None if there is none."""
    file = files("tranship.schema") / "published" / file_name(name)
    return file.read_bytes() if file.is_file() else None


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles of fields, which only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _subschemas(part: object) -> Iterator[JsonSchema]:
    """Yield every schema inside `part`, itself included; no field's name is a keyword's."""
    if isinstance(part, dict):
        members = cast(JsonSchema, part)
        yield members
        for keyword, value in members.items():
            if keyword not in ("default", "enum", "const", "required", "discriminator"):
                yield from _subschemas(value)
    elif isinstance(part, list):
        for element in cast(list[object], part):
            yield from _subschemas(element)


def _spell_out_tags(part: JsonSchema, definitions: dict[str, JsonSchema]) -> None:
    """Say in JSON Schema's own words that a member of a union is told by its tag."""
    discriminator = part.pop("discriminator", None)
    if discriminator is None:
        return
    tag = discriminator["propertyName"]
    for reference in discriminator["mapping"].values():
        member = definitions[reference.rpartition("/")[2]]
        member["required"] = [tag, *(name for name in member.get("required", ()) if name != tag)]
        member["properties"][tag].pop("default", None)


def _unwrapped(text: str) -> str:
    paragraphs = text.split("\n\n")
    return "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)
