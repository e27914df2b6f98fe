"""Fields that a comparison does not know by name: they are compared as they are written."""

import json
from collections.abc import Iterator

from pydantic import BaseModel

from tranship.compiler.diffs.change import Change, Weight


def extras(model: BaseModel, known: frozenset[str]) -> dict[str, object]:
    """Return what a model holds besides the fields `known`, without defaults."""
    return model.model_dump(mode="json", exclude=set(known), exclude_defaults=True)


def as_text(value: object) -> str | None:
    """Write a JSON value on one line; None for what is not there."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def extra_changes(
    old: BaseModel, new: BaseModel, known: frozenset[str], kind: str, subject: str, pointer: str
) -> Iterator[Change]:
    """Compare two models field by field, but for the fields `known`."""
    before, after = extras(old, known), extras(new, known)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            place = f"{pointer}/{name}" if name in after else pointer
            texts = as_text(before.get(name)), as_text(after.get(name))
            yield Change(f"{kind}.{name}", Weight.CHANGE, subject, *texts, pointer=place)
