"""Files in and out: strict JSON and TOML to checked models, models to canonical bytes.

Whatever bytes a file holds, reading it ends in a value or in a `DiagnosticError`. What is written
is a function of the value alone, down to the order of mappings.
"""

import contextlib
import json
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from tranship.schema.canonical import INT_LIMIT, Unfit, canonical_bytes, digest, find_unfit
from tranship.schema.diagnostics import (
    Diagnostic,
    DiagnosticError,
    Label,
    Location,
    report_first,
)
from tranship.schema.model_errors import diagnose
from tranship.schema.positions import (
    MAX_DEPTH,
    Repeat,
    Source,
    join_pointer,
    pointer_parts,
    too_deep_json,
    too_deep_toml,
)

__all__ = [
    "MAX_DEPTH",
    "Document",
    "Source",
    "canonical_bytes",
    "digest",
    "dump",
    "load",
    "parse_json",
    "parse_toml",
    "read_text",
    "validate",
    "write_atomically",
]

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Document(Generic[M]):
    """A file that was read: its checked value, its text, and the digest of the value.

    `digest` is that of `dump(value)`: it does not change with the layout of the file, the order
    of its fields, or defaults that are spelled out. The order of a mapping's entries does count.
    """

    value: M
    source: Source
    digest: str


def load(path: str | Path, model: type[M]) -> Document[M]:
    """Read a `.json` or `.toml` file and check it against `model`.

    Raises:
        DiagnosticError: TS100 to TS118; the file is missing, broken, or not what `model` says.
    """
    parsers = {".json": parse_json, ".toml": parse_toml}
    parse = parsers.get(Path(path).suffix.lower())
    if parse is None:
        _fail("TS109", "the name ends in neither .json nor .toml", Location(str(path)))
    source = Source(str(path), read_text(path))
    value = validate(model, parse(source.text, source.file), source)
    return Document(value, source, digest(dump(value)))


def read_text(path: str | Path) -> str:
    """Read a whole file of UTF-8 text; line ends are left as they are.

    Raises:
        DiagnosticError: TS100, it is missing, a folder or unreadable; TS101, it is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        _fail("TS100", _reason(error), Location(str(path)))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        at = Source(str(path), before).at_offset(len(before))
        _fail("TS101", f"byte {data[error.start]:#04x} at offset {error.start} is not UTF-8", at)


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).lower()


def _fail(code: str, message: str, at: Location) -> NoReturn:
    raise DiagnosticError([Diagnostic(code, message, at)]) from None


def parse_json(text: str, file: str) -> object:
    """Parse one JSON document, without the liberties that `json.loads` takes.

    Refuses repeated keys, NaN and infinities, integers beyond 64 bits, numbers that overflow,
    lone surrogates, a byte order mark, and nesting deeper than `MAX_DEPTH`.

    Raises:
        DiagnosticError: TS102 to TS105, TS108.
    """
    source = Source(file, text)
    _check_start(source, "TS102", too_deep_json)
    has_repeats = False

    def to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal has_repeats
        members = dict(pairs)
        has_repeats = has_repeats or len(members) < len(pairs)
        return members

    try:
        value = json.loads(text, object_pairs_hook=to_dict, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        raise DiagnosticError([_not_json(error, source)]) from None
    found = source.scan.repeats if has_repeats else ()
    _refuse(found, lambda repeat: _repeated_key(repeat, source), file)
    _refuse_unfit(value, source)
    return value


def _check_start(source: Source, code: str, too_deep: Callable[[str], int | None]) -> None:
    """Refuse what the parsers must not see, or would only report as a wrong character."""
    if source.text.startswith("\ufeff"):
        _fail(code, "a byte order mark comes before the first character", source.at_offset(0))
    offset = too_deep(source.text)
    if offset is not None:
        message = f"more than {MAX_DEPTH} levels lie within one another"
        _fail("TS105", message, source.at_offset(offset))


def _parse_int(digits: str) -> int:
    # Python refuses to read integers of thousands of digits; any beyond 64 bits is as wrong.
    return int(digits) if len(digits) <= 20 else INT_LIMIT


def _not_json(error: json.JSONDecodeError, source: Source) -> Diagnostic:
    at = source.at_offset(error.pos)
    unterminated = error.msg.startswith("Unterminated string")
    if not source.text.strip():
        return Diagnostic("TS102", "the file is empty", at)
    if unterminated or error.pos >= len(source.text.rstrip()):
        advice = "the file was cut off, or a quote or bracket is missing before this place"
        message = "the text ends inside a string" if unterminated else "the text ends too early"
        return Diagnostic("TS102", message, at, help=advice)
    if error.msg == "Extra data":
        return Diagnostic("TS102", "something follows the end of the document", at)
    return Diagnostic("TS102", _lower_first(error.msg), at)


def _repeated_key(repeat: Repeat, source: Source) -> Diagnostic:
    return Diagnostic(
        "TS103",
        f"{pointer_parts(repeat.pointer)[-1]!r} occurs twice in one object",
        source.at_offset(repeat.again, repeat.pointer),
        labels=(Label(source.at_offset(repeat.first, repeat.pointer), "first here"),),
        help="keep one of the two",
    )


def _refuse_unfit(value: object, source: Source) -> None:
    _refuse(list(find_unfit(value)), lambda unfit: _unfit_value(unfit, source), source.file)


def _unfit_value(unfit: Unfit, source: Source) -> Diagnostic:
    return Diagnostic(unfit.code, unfit.message, source.locate(join_pointer(unfit.path)))


T = TypeVar("T")


def _refuse(found: Sequence[T], report: Callable[[T], Diagnostic], file: str) -> None:
    if found:
        raise DiagnosticError(report_first(found, report, file))


def parse_toml(text: str, file: str) -> object:
    """Parse one TOML document into the values that JSON has too.

    Refuses dates and times, and what `parse_json` refuses. Places are found where `file` is named
    .toml.

    Raises:
        DiagnosticError: TS104 to TS106, TS108, TS112.
    """
    source = Source(file, text)
    _check_start(source, "TS106", too_deep_toml)
    try:
        value = tomllib.loads(text)
    except ValueError as error:
        raise DiagnosticError([_not_toml(error, source)]) from None
    _refuse_unfit(value, source)
    return value


_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _not_toml(error: ValueError, source: Source) -> Diagnostic:
    if not isinstance(error, tomllib.TOMLDecodeError):
        return Diagnostic("TS104", "an integer has thousands of digits", Location(source.file))
    message = _lower_first(_TOML_PLACE.sub("", str(error)))
    place = _TOML_PLACE.search(str(error))
    if place and place[1]:
        at = Location(source.file, "", int(place[1]), int(place[2]))
        return Diagnostic("TS106", message, at)
    at = source.at_offset(len(source.text))
    return Diagnostic("TS106", f"{message}, and the text ends", at)


def _lower_first(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def validate(model: type[M], data: object, source: Source) -> M:
    """Check parsed data against `model`, strictly.

    Raises:
        DiagnosticError: TS110 to TS118; everything that is wrong with the data, not just the first.
    """
    # By way of text: only from JSON does pydantic's strict mode take an array for a tuple and a
    # string for an enum.
    text = json.dumps(data)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise DiagnosticError(diagnose(error, model, data, source)) from None


def dump(model: BaseModel) -> bytes:
    """Write a model as canonical bytes: fields under their aliases, without those at their default.

    The field "format" is always written, first if its value is its default. The tag of a
    discriminated union must have no default: left out, it could not be read back.
    """
    data = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return canonical_bytes(model.model_dump(mode="json", include={"format"}) | data)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Replace the contents of `path`, or create it: all of `data`, or no change at all.

    A link is followed. A file that was there keeps its permissions.

    Raises:
        DiagnosticError: TS107, a folder is in the way, or its folder is missing or not writable.
    """
    try:
        target = os.path.realpath(path)
        beside = os.path.join(os.path.dirname(target), f".tranship-{secrets.token_hex(8)}.tmp")
        with _removed_on_failure(beside):
            _write_new(beside, data, like=target)
            os.replace(beside, target)
    except (OSError, ValueError) as error:
        _fail("TS107", _reason(error), Location(str(path)))


@contextlib.contextmanager
def _removed_on_failure(path: str) -> Generator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _write_new(path: str, data: bytes, like: str) -> None:
    """Write a file that is not there yet, down to the disk, with the permissions of `like`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with open(descriptor, "wb") as file:
        file.write(data)
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(descriptor, stat.S_IMODE(os.stat(like).st_mode))
        file.flush()
        os.fsync(descriptor)
