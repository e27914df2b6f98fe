"""The published JSON Schemas and the readers accept the same documents."""

import copy
import json
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import (
    extend,  # pyright: ignore[reportUnknownVariableType] -- its arguments have no types
)

from tranship.schema.codec import Source, parse_json, validate
from tranship.schema.diagnostics import DiagnosticError, known_codes
from tranship.schema.publish import (
    MODELS,
    NAMES,
    JsonSchema,
    committed_bytes,
    json_schema,
    published_bytes,
)

BY_NAME = dict(zip(NAMES, MODELS.values(), strict=True))


def _is_int(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _for_python(schema: object, *, of_patterns: bool = False) -> object:
    """Write patterns for `re`: in ECMA 262, which JSON Schema goes by, `$` is the end alone."""
    match schema:
        case dict():
            inside = cast(dict[str, object], schema).items()
            return {
                (key.replace("$", r"\Z") if of_patterns else key): (
                    value.replace("$", r"\Z")
                    if key == "pattern" and isinstance(value, str)
                    else _for_python(value, of_patterns=key == "patternProperties")
                )
                for key, value in inside
            }
        case list():
            return [_for_python(item) for item in cast(list[object], schema)]
        case _:
            return schema


Strict = cast(
    type[Validator],
    extend(
        Draft202012Validator,
        type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_int),
    ),
)
"""JSON Schema, with 1.0 no integer: there alone the readers are documented to be stricter."""

VALIDATORS = {name: Strict(cast(JsonSchema, _for_python(json_schema(name)))) for name in NAMES}


def refusals(name: str, text: str) -> list[str]:
    """The codes with which the reader refuses a document; none if it takes it."""
    try:
        validate(BY_NAME[name], parse_json(text, "x.json"), Source("x.json", text))
    except DiagnosticError as error:
        return [one.code for one in error.diagnostics]
    return []


def values(schema: JsonSchema, root: JsonSchema) -> st.SearchStrategy[Any]:
    """Documents that follow `schema`; only for the keywords that the published schemas use."""
    match schema:
        case {"$ref": str(reference)}:
            return values(root["$defs"][reference.rpartition("/")[2]], root)
        case {"anyOf": alternatives} | {"oneOf": alternatives}:
            return st.one_of([values(one, root) for one in cast(list[JsonSchema], alternatives)])
        case {"const": value}:
            return st.just(cast(object, value))
        case {"enum": members}:
            return st.sampled_from(cast(list[object], members))
        case {"type": "object"}:
            return objects(schema, root)
        case {"type": "array"}:
            least = schema.get("minItems", 0)
            return st.lists(values(schema["items"], root), min_size=least, max_size=least + 2)
        case {"type": "integer"}:
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        case {"type": "number"}:
            return st.floats(
                schema.get("exclusiveMinimum"), schema.get("maximum"), exclude_min=True
            )
        case {"type": "string", "pattern": str(pattern)}:
            return st.from_regex(pattern, fullmatch=True)
        case {"type": "string"}:
            least = schema.get("minLength", 0)
            characters = st.characters(codec="utf-8")
            return st.text(characters, min_size=least, max_size=least + 8)
        case {"type": "null"}:
            return st.none()
        case {"type": "boolean"}:
            return st.booleans()
        case _:
            raise NotImplementedError(schema)


def objects(schema: JsonSchema, root: JsonSchema) -> st.SearchStrategy[dict[str, Any]]:
    if "patternProperties" in schema:
        ((pattern, inner),) = cast(JsonSchema, schema["patternProperties"]).items()
        keys = st.from_regex(pattern, fullmatch=True)
        return st.dictionaries(keys, values(inner, root), max_size=2)
    required = schema.get("required", [])
    fields = {key: values(inner, root) for key, inner in schema["properties"].items()}
    return st.fixed_dictionaries(
        {key: fields[key] for key in required},
        optional={key: inner for key, inner in fields.items() if key not in required},
    )


SCHEMAS = {name: json_schema(name) for name in NAMES}
DOCUMENTS = {name: values(schema, schema) for name, schema in SCHEMAS.items()}

SCALARS = [None, True, False, 0, 1, -1, 2**40 + 1, 2**62, 2**62 + 1, 1.0, 1.5, -0.0, 1e300]
TEXTS = ["", "x", "X", "x\n", "all", "0..1", "0..1\n", "0,", "bf16", "x" * 513, "\U0001f600" * 512]
CONTAINERS = [[], [0], ["all"], {}, {"x": 0}, {"kind": "plain"}, {"kind": "nothing"}]
STRANGE = st.sampled_from([*SCALARS, *TEXTS, *CONTAINERS])


def places(value: object) -> list[tuple[Any, Any]]:
    """Every container inside a document with every key or position that it has."""
    items: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        items = list(cast(dict[str, object], value).items())
    elif isinstance(value, list):
        items = list(enumerate(cast(list[object], value)))
    container: Any = cast(object, value)
    own = [(container, key) for key, _ in items]
    return [*own, *(place for _, inner in items for place in places(inner))]


@st.composite
def broken(draw: st.DrawFn, name: str) -> Any:
    """A document that follows its schema but for one change, which may leave it right."""
    document = copy.deepcopy(draw(DOCUMENTS[name]))
    container, key = draw(st.sampled_from(places(document)))
    match draw(st.sampled_from(["replace", "remove", "rename"])):
        case "remove":
            del container[key]
        case "rename" if isinstance(key, str):
            container[draw(st.sampled_from(["kind", "X", "x\n", "shape"]))] = container.pop(key)
        case _:
            container[key] = draw(STRANGE)
    return document


SOME = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", NAMES)
def test_published_file_is_what_the_model_generates(name: str) -> None:
    assert committed_bytes(name) == published_bytes(name)


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_a_json_schema(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@SOME
def test_reader_takes_what_follows_the_schema(name: str, data: st.DataObject) -> None:
    document = data.draw(DOCUMENTS[name])
    assert VALIDATORS[name].is_valid(document)
    assert refusals(name, json.dumps(document)) == []


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@SOME
def test_reader_and_schema_agree_on_documents_with_a_change(name: str, data: st.DataObject) -> None:
    document = data.draw(broken(name))
    codes = refusals(name, json.dumps(document))
    assert VALIDATORS[name].is_valid(document) == (codes == [])
    assert set(codes) <= set(known_codes())


@pytest.mark.parametrize("number", ["2.0", "2e0", "20e-1"])
def test_reader_alone_refuses_an_integer_with_a_fraction(number: str) -> None:
    text = (
        f'{{"format": "tranship.manifest/1", "side": "sender", "world_size": {number}, '
        '"tensors": [], "buffers": []}'
    )
    assert Draft202012Validator(SCHEMAS["manifest"]).is_valid(json.loads(text))
    assert refusals("manifest", text) == ["TS112"]


def test_schema_says_which_tag_tells_the_members_of_a_union() -> None:
    definitions = SCHEMAS["manifest"]["$defs"]
    for member in ("Plain", "Scaled", "Scale", "Transfer", "Derived", "ConstantBuffer", "Alias"):
        assert "kind" in definitions[member]["required"], member
