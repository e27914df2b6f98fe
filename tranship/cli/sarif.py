"""SARIF 2.1.0, as code scanning of GitHub takes it.

A finding's fingerprint comes from its code and its place in the document, not from its line, so
that a finding stays the same one while the file around it changes. Source of what GitHub reads:
docs.github.com, "SARIF support for code scanning".
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from tranship import __version__
from tranship.cli.repository import UNWRITTEN, repository_path
from tranship.schema.canonical import Json
from tranship.schema.diagnostics import (
    Diagnostic,
    Location,
    Severity,
    explanation,
    sort_key,
    title,
)

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_TOP = "%SRCROOT%"


def sarif(diagnostics: Iterable[Diagnostic]) -> dict[str, Json]:
    """Write diagnostics, sorted by place, as one SARIF log with one run."""
    found = sorted(diagnostics, key=sort_key)
    codes = sorted({one.code for one in found})
    driver: dict[str, Json] = {
        "name": "tranship",
        "semanticVersion": __version__,
        "rules": [_rule(code) for code in codes],
    }
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": [*_results(found, codes)]}],
    }


def _rule(code: str) -> dict[str, Json]:
    page = explanation(code)
    body = page.partition("\n")[2].strip()
    return {
        "id": code,
        "shortDescription": {"text": title(code)},
        "fullDescription": {"text": " ".join(body.split("\n\n")[0].split()) or title(code)},
        "help": {"text": body, "markdown": body},
        "defaultConfiguration": {"level": Severity.ERROR.value},
    }


def _results(found: Sequence[Diagnostic], codes: Sequence[str]) -> Iterator[dict[str, Json]]:
    seen = Counter[str]()
    for one in found:
        at = one.at or Location("")
        identity = f"{one.code}\n{_uri(at.file)}\n{at.pointer}"
        seen[identity] += 1
        mark = hashlib.sha256(identity.encode()).hexdigest()[:16]
        yield {
            "ruleId": one.code,
            "ruleIndex": codes.index(one.code),
            "level": one.severity.value,
            "message": {"text": _message(one)},
            "locations": [_location(at)],
            "relatedLocations": [
                {**_location(label.at), "message": {"text": label.text}} for label in one.labels
            ],
            "partialFingerprints": {"primaryLocationLineHash": f"{mark}:{seen[identity]}"},
        }


def _message(diagnostic: Diagnostic) -> str:
    parts = [diagnostic.message, diagnostic.help and f"help: {diagnostic.help}"]
    return "\n".join(_unicode(part) for part in parts if part)


def _location(at: Location) -> dict[str, Json]:
    artifact: dict[str, Json] = {"uri": _uri(at.file)}
    if repository_path(at.file) is not None:
        artifact["uriBaseId"] = _TOP
    physical: dict[str, Json] = {"artifactLocation": artifact}
    if at.line is not None:
        region: dict[str, Json] = {"startLine": at.line}
        physical["region"] = region | ({"startColumn": at.column} if at.column else {})
    location: dict[str, Json] = {"physicalLocation": physical}
    if at.pointer:
        location["logicalLocations"] = [{"fullyQualifiedName": _unicode(at.pointer)}]
    return location


def _uri(file: str) -> str:
    """Write a path as a relative reference; what is in no working tree goes by its name."""
    known = repository_path(file) or file.removesuffix(UNWRITTEN)
    return quote(_unicode(known.replace("\0", "?")), safe="/") or "tranship"


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
