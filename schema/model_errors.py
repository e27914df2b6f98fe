"""Pydantic's errors about a document, as diagnostics at places in its text.

Pydantic says where an error is in terms of the model: its paths also hold tags and members of
unions, which the document does not have, and it knows neither lines nor which fields and values
would have been right. The model's JSON Schema, followed alongside the document, tells all that.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tranship.schema.diagnostics import Diagnostic, Location, report_first
from tranship.schema.nearest import nearest
from tranship.schema.positions import Source, join_pointer

Schema = dict[str, Any]
"""A JSON Schema; what a value is depends on its keyword."""

Path = tuple[str | int, ...]


def diagnose(
    error: ValidationError, model: type[BaseModel], data: object, source: Source
) -> tuple[Diagnostic, ...]:
    """Turn what pydantic found into diagnostics; an unsupported format hides all that follows."""
    errors = error.errors(include_url=False, include_input=False)
    context = _Context(model.model_json_schema(), data, source)
    for one in errors:
        if one["loc"] == ("format",) and one["type"] == "literal_error":
            return (context.wrong_format(one),)
    return _one_per_value(report_first(errors, context.report, source.file))


_VALUE_CODES = frozenset({"TS112", "TS113", "TS115", "TS116"})


def _one_per_value(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Keep one of those that the members of a union have about one value.

    A member that takes values of another type says less than one that refuses this very value.
    """
    kept: dict[object, Diagnostic] = {}
    for diagnostic in diagnostics:
        key = diagnostic.at if diagnostic.code in _VALUE_CODES else diagnostic
        if key not in kept or kept[key].code == "TS112":
            kept[key] = diagnostic
    return tuple(kept.values())


@dataclass(frozen=True, slots=True)
class _Place:
    """A part of the document, and the schemas that it may follow: several in a union."""

    path: Path
    value: object
    schemas: tuple[Schema, ...]


@dataclass(frozen=True, slots=True)
class _Context:
    """A document, its text and its schema."""

    schema: Schema
    data: object
    source: Source

    def report(self, error: ErrorDetails) -> Diagnostic:
        """Say in the document's terms what `error` says in the model's."""
        loc = error["loc"]
        match error["type"]:
            case "missing":
                return self._missing(self._follow(loc[:-1]), loc[-1])
            case "union_tag_not_found":
                return self._missing(self._follow(loc), _discriminator(error))
            case "extra_forbidden":
                return self._unknown(self._follow(loc[:-1]), str(loc[-1]))
            case "union_tag_invalid":
                return self._refused_tag(self._follow(loc), error)
            case _ if loc[-1:] == ("[key]",):
                return self._refused_key(self._follow(loc[:-1]), error)
            case _:
                place = self._follow(loc)
                return _refused(place, error, self.source.locate(join_pointer(place.path)))

    def wrong_format(self, error: ErrorDetails) -> Diagnostic:
        """Report a file of another format, or of another version of it."""
        place = self._follow(error["loc"])
        at = self.source.locate(join_pointer(place.path))
        advice = "is this the right file? If it is, use a version of tranship that reads its format"
        return replace(_refused(place, error, at), code="TS114", help=advice, suggestion=None)

    def _follow(self, loc: Path) -> _Place:
        place = _Place((), self.data, tuple(_alternatives(self.schema, self.schema)))
        for part in loc:
            place = _step(place, part, self.schema)
        return place

    def _missing(self, place: _Place, name: str | int) -> Diagnostic:
        inner = tuple(_inner_schemas(place.schemas, name, self.schema))
        values = _constants(inner)
        return Diagnostic(
            "TS111",
            f"{_name(place.path)} lacks {_name((name,), 'it')}",
            self.source.locate(join_pointer(place.path)),
            expected=_describe(inner),
            suggestion=f"{_shown(name)}: {_shown(values[0])}" if len(values) == 1 else None,
        )

    def _unknown(self, place: _Place, name: str) -> Diagnostic:
        fields = dict.fromkeys(
            field for one in place.schemas for field in one.get("properties", ())
        )
        present = cast(dict[str, object], place.value)
        near = nearest(name, fields.keys() - present.keys(), limit=1)
        return Diagnostic(
            "TS110",
            f"{_name(place.path)} has no field {name!r}",
            self.source.locate_key(join_pointer((*place.path, name))),
            expected=_one_of([*fields]),
            help=f"did you mean {near[0]!r}?" if near else "remove it",
            suggestion=near[0] if near else None,
        )

    def _refused_tag(self, place: _Place, error: ErrorDetails) -> Diagnostic:
        tags = [tag for schema in place.schemas for tag in _tagged(schema)]
        tag = replace(_step(place, _discriminator(error), self.schema), schemas=({"enum": tags},))
        return _refused(tag, error, self.source.locate(join_pointer(tag.path)))

    def _refused_key(self, place: _Place, error: ErrorDetails) -> Diagnostic:
        key = _Place(place.path, place.path[-1], ())
        return _refused(key, error, self.source.locate_key(join_pointer(place.path)))


def _refused(place: _Place, error: ErrorDetails, at: Location) -> Diagnostic:
    code, expected = _verdict(error, place.schemas)
    name, found = _name(place.path), _shown(place.value)
    if expected is None:
        return Diagnostic(code, f"{name}: {_reason(error)}", at, found=found)
    near = _nearest_value(place) if code == "TS113" else None
    return Diagnostic(
        code,
        f"{name}: expected {expected}, found {found}",
        at,
        expected=expected,
        found=found,
        help=f"did you mean {near}?" if near else None,
        suggestion=near,
    )


_BOUNDS = {
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "a length of at most {max_length}",
    "string_too_short": "a length of at least {min_length}",
    "too_long": "a length of at most {max_length}",
    "too_short": "a length of at least {min_length}",
}
_WRONG_TYPE = ("_type", "_parsing", "_from_float", "none_required")


def _verdict(error: ErrorDetails, schemas: Sequence[Schema]) -> tuple[str, str | None]:
    """Return the code for an error about a value, and what was expected if that can be told."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        return "TS113", _describe(schemas)
    if kind in _BOUNDS:
        return "TS115", _BOUNDS[kind].format_map(context)
    if kind == "string_pattern_mismatch":
        return "TS116", f"text that matches {context['pattern']}"
    if kind.endswith(_WRONG_TYPE):
        return "TS112", _describe(schemas)
    return "TS117", None


def _reason(error: ErrorDetails) -> str:
    reason = str(error.get("ctx", {}).get("error", error["msg"]))
    return reason[:1].lower() + reason[1:]


def _discriminator(error: ErrorDetails) -> str:
    return error.get("ctx", {})["discriminator"].strip("'")


def _step(place: _Place, part: str | int, root: Schema) -> _Place:
    """Follow one part of pydantic's path; one that only names a union's member changes no place."""
    tagged = [one for schema in place.schemas for one in _tagged(schema).get(part, ())]
    if tagged:
        return replace(place, schemas=tuple(x for one in tagged for x in _alternatives(one, root)))
    inner = tuple(_inner_schemas(place.schemas, part, root))
    for value in _inside(place.value, part):
        return _Place((*place.path, part), value, inner)
    return place


def _inside(container: object, part: str | int) -> list[object]:
    """Return the member `part` of a value, if it has it."""
    if isinstance(container, dict):
        members = cast(dict[str | int, object], container)
        return [members[part]] if part in members else []
    if isinstance(container, list) and isinstance(part, int):
        return cast(list[object], container)[part : part + 1]
    return []


def _tagged(schema: Schema) -> dict[str | int, list[Schema]]:
    """Return the members of a discriminated union by tag."""
    mapping = schema.get("discriminator", {}).get("mapping", {})
    return {tag: [{"$ref": reference}] for tag, reference in mapping.items()}


def _alternatives(schema: Schema, root: Schema) -> Iterator[Schema]:
    """List `schema` and, if it is a union, its members, with references replaced."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    yield schema
    for member in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _alternatives(member, root)


def _inner_schemas(schemas: Iterable[Schema], part: str | int, root: Schema) -> Iterator[Schema]:
    """List the schemas of the member `part` of what has one of `schemas`."""
    for schema in schemas:
        for inner in _elements(schema, part) if isinstance(part, int) else _fields(schema, part):
            yield from _alternatives(inner, root)


def _elements(schema: Schema, index: int) -> list[Schema]:
    first: list[Schema] = schema.get("prefixItems", [])
    if index < len(first):
        return [first[index]]
    return [schema["items"]] if isinstance(schema.get("items"), dict) else []


def _fields(schema: Schema, name: str) -> list[Schema]:
    if name in schema.get("properties", {}):
        return [schema["properties"][name]]
    other = schema.get("additionalProperties")
    patterns: dict[str, Schema] = schema.get("patternProperties", {})
    return [*patterns.values(), *([other] if isinstance(other, dict) else [])]


_KINDS = {
    "array": "an array",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "text",
}
_MOST_SHOWN = 16


def _describe(schemas: Sequence[Schema]) -> str | None:
    """Say what the alternatives `schemas` take, if they say so themselves."""
    open_ended = [one["type"] for one in schemas if "type" in one and not _constants([one])]
    kinds = [_KINDS[kind] for kind in dict.fromkeys(open_ended)]
    values = _one_of(_constants(schemas))
    return " or ".join(kinds + ([values] if values else [])) or None


def _constants(schemas: Iterable[Schema]) -> list[object]:
    """Return the values that the alternatives list one by one."""
    lists = (one.get("enum", [one["const"]] if "const" in one else []) for one in schemas)
    return [value for values in lists for value in values]


def _one_of(values: Sequence[object]) -> str | None:
    shown = [_shown(value) for value in values[:_MOST_SHOWN]]
    more = ", ..." if len(values) > _MOST_SHOWN else ""
    if len(shown) < 2:
        return shown[0] if shown else None
    return f"one of {', '.join(shown)}{more}"


def _nearest_value(place: _Place) -> str | None:
    texts = [value for value in _constants(place.schemas) if isinstance(value, str)]
    near = nearest(place.value, texts, limit=1) if isinstance(place.value, str) else ()
    return _shown(near[0]) if near else None


def _shown(value: object) -> str:
    """Write a value of a document so that it fits in a sentence."""
    if isinstance(value, dict | list):
        count = len(cast(list[object], value))
        what = "an object of {} field" if isinstance(value, dict) else "an array of {} value"
        return what.format(count) + "s" * (count != 1)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _name(path: Path, outer: str = "the document") -> str:
    if not path:
        return outer
    if isinstance(path[-1], int):
        return f"element {path[-1]} of {_name(path[:-1], outer)}"
    return repr(path[-1])
