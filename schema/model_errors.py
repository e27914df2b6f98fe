"""Pydantic's errors about a document, as diagnostics at places in its text.

Pydantic says where an error is in terms of the model: its paths also hold tags and members of
unions, which the document does not have, and it knows neither lines nor which fields and values
would have been right. The model's JSON Schema, followed alongside the document, tells all that.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tranship.schema.diagnostics import Diagnostic, report_first
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
    for one in errors:
        if one["loc"] == ("format",) and one["type"] != "missing":
            errors = [one]
            break
    context = _Context(model.model_json_schema(), data, source)
    return _one_per_value(report_first(errors, context.report, source.file))


_VALUE_CODES = frozenset({"TS112", "TS113", "TS115", "TS116"})


def _one_per_value(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Keep one of those that the members of a union have about one value.

    A member that takes values of another type says less than one that refuses this very value.
    """
    kept: dict[object, Diagnostic] = {}
    for diagnostic in diagnostics:
        of_value = diagnostic.code in _VALUE_CODES
        key = diagnostic.at if of_value else diagnostic
        if key not in kept or kept[key].code == "TS112":
            kept[key] = diagnostic
    return tuple(kept.values())


@dataclass(frozen=True, slots=True)
class _Context:
    """What is needed to say where an error is, and what would have been right."""

    schema: Schema
    data: object
    source: Source

    def report(self, error: ErrorDetails) -> Diagnostic:
        loc = error["loc"]
        match error["type"]:
            case "missing":
                return self._missing(self._follow(loc[:-1]), loc[-1])
            case "union_tag_not_found":
                return self._missing(self._follow(loc), _discriminator(error))
            case "extra_forbidden":
                return self._unknown(self._follow(loc[:-1]), str(loc[-1]))
            case "union_tag_invalid":
                tags = sorted(tag for one in self._follow(loc).schemas for tag in _mapping(one))
                place = self._follow((*loc, _discriminator(error)))
                return self._refused(replace(place, schemas=({"enum": tags},)), error)
            case _ if loc[-1:] == ("[key]",):
                return self._refused_key(self._follow(loc[:-1]), error)
            case _:
                return self._refused(self._follow(loc), error)

    def _follow(self, loc: Path) -> Place:
        place = Place((), self.data, tuple(_alternatives(self.schema, self.schema)))
        for part in loc:
            place = _step(place, part, self.schema)
        return place

    def _missing(self, place: Place, name: str | int) -> Diagnostic:
        inner = [one for schema in place.schemas for one in _inside(schema, name)]
        constants = [one["const"] for one in inner if "const" in one]
        what = f"element {name}" if isinstance(name, int) else f"the field {name!r}"
        return Diagnostic(
            "TS111",
            f"{place.name} lacks {what}",
            self.source.locate(join_pointer(place.path)),
            expected=_expected(tuple(one for top in inner for one in _alternatives(top, self.schema))),
            help=f"add {what}",
            suggestion=f"{_shown(name)}: {_shown(constants[0])}" if constants else None,
        )

    def _unknown(self, place: Place, name: str) -> Diagnostic:
        fields = {field for schema in place.schemas for field in schema.get("properties", {})}
        present = cast(dict[str, object], place.value)
        near = nearest(name, fields - present.keys(), limit=1)
        return Diagnostic(
            "TS110",
            f"{place.name} has no field {name!r}",
            self.source.locate_key(join_pointer((*place.path, name))),
            expected=_one_of(sorted(fields)),
            help=f"did you mean {near[0]!r}?" if near else None,
            suggestion=near[0] if near else None,
        )

    def _refused(self, place: Place, error: ErrorDetails) -> Diagnostic:
        code, expected = _verdict(error, place.schemas)
        at = self.source.locate(join_pointer(place.path))
        if expected is None:
            return Diagnostic(code, f"{place.name}: {_reason(error)}", at)
        near = _near_values(place) if code == "TS113" else ()
        return Diagnostic(
            code,
            f"{place.name}: expected {expected}, found {_shown(place.value)}",
            at,
            expected=expected,
            found=_shown(place.value),
            help=f"did you mean {_shown(near[0])}?" if near else None,
            suggestion=_shown(near[0]) if near else None,
        )
