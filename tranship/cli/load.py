"""Files in: any document by what it says it is, and a transfer file with all that it names."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from pydantic import BaseModel

from tranship.compiler.inputs import Inputs
from tranship.compiler.verify import InputDigests
from tranship.schema.check import (
    check_manifest,
    check_placement,
    check_plan,
    check_policy,
    check_transfer,
    speaks_for_all,
)
from tranship.schema.codec import (
    Document,
    Source,
    digest,
    dump,
    load,
    parse_json,
    parse_toml,
    read_text,
    validate,
)
from tranship.schema.diagnostics import (
    Diagnostic,
    DiagnosticError,
    Label,
    Location,
    Severity,
)
from tranship.schema.manifest import Manifest, Side
from tranship.schema.nearest import nearest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.publish import MODELS
from tranship.schema.transfer import Transfer

M = TypeVar("M", bound=BaseModel)


def load_any(path: str) -> Document[BaseModel]:
    """Read a file of any of the formats, which its field "format" tells.

    Raises:
        DiagnosticError: TS100 to TS118.
    """
    return parse_any(read_text(path), path)


def parse_any(text: str, file: str) -> Document[BaseModel]:
    """Read the text of a `file` of any of the formats; one that is named .toml is TOML.

    Raises:
        DiagnosticError: TS102 to TS118.
    """
    is_toml = Path(file).suffix.lower() == ".toml"
    data = parse_toml(text, file) if is_toml else parse_json(text, file)
    source = Source(file, text)
    value = validate(_model(data, source), data, source)
    return Document(value, source, digest(dump(value)))


def _model(data: object, source: Source) -> type[BaseModel]:
    members = cast(dict[str, object], data) if isinstance(data, dict) else {}
    stated = members.get("format")
    if isinstance(stated, str) and stated in MODELS:
        return MODELS[stated]
    expected = f"one of {', '.join(MODELS)}"
    if not isinstance(stated, str):
        message = "the document does not say in a field 'format' what it is"
        raise DiagnosticError([Diagnostic("TS111", message, source.locate(""), expected=expected)])
    near = nearest(stated, MODELS, limit=1)
    raise DiagnosticError(
        [
            Diagnostic(
                "TS114",
                f"this version of tranship knows no format {stated!r}",
                source.locate("/format"),
                expected=expected,
                suggestion=near[0] if near else None,
            )
        ]
    )


def format_of(document: Document[BaseModel]) -> str:
    """Return what the field "format" of a document says."""
    return next(name for name, model in MODELS.items() if isinstance(document.value, model))


def check_document(value: BaseModel, source: Source) -> tuple[Diagnostic, ...]:
    """Find what is wrong with a document beyond what its JSON Schema says."""
    match value:
        case Manifest() as manifest:
            return check_manifest(manifest, source)
        case Policy() as policy:
            return check_policy(policy, source)
        case Placement() as placement:
            return check_placement(placement, source)
        case Transfer() as transfer:
            return check_transfer(transfer, source)
        case TransferPlan() as plan:
            return check_plan(plan, source)
        case other:
            raise AssertionError(f"no format has the model {type(other).__name__}")


@dataclass(frozen=True)
class Loaded:
    """A transfer file that was read, with all that it names; no error was found in any of them.

    `files` names every file that was read, `sources` finds lines in them by what they are.
    """

    inputs: Inputs
    digests: InputDigests
    files: tuple[str, ...]
    warnings: tuple[Diagnostic, ...]


def load_transfer(path: str) -> Loaded:
    """Read and check a transfer file, and the manifests, policy and placement that it names.

    Raises:
        DiagnosticError: everything that is wrong with any of them.
    """
    transfer = load(path, Transfer)
    gathered = _Gathered(
        transfer, [*check_document(transfer.value, transfer.source)], {"transfer": transfer.source}
    )
    sender = gathered.manifest(Side.SENDER, transfer.value.sender)
    receiver = gathered.manifest(Side.RECEIVER, transfer.value.receiver)
    policy = gathered.read("policy", transfer.value.policy, Policy)
    placement = gathered.read("placement", transfer.value.placement, Placement)
    raise_errors(gathered.found)
    assert sender, "a sender that cannot be read is an error"
    assert receiver, "a receiver that cannot be read is an error"
    return Loaded(
        Inputs(
            sender.value,
            receiver.value,
            policy.value if policy else None,
            placement.value if placement else None,
            transfer.value.options,
            gathered.sources,
        ),
        InputDigests(
            sender.digest,
            receiver.digest,
            policy.digest if policy else None,
            placement.digest if placement else None,
            digest(dump(transfer.value.options)),
        ),
        tuple(source.file for source in gathered.sources.values()),
        tuple(gathered.found),
    )


def refuse_inputs(target: str, files: Iterable[str]) -> None:
    """See that `target`, which is to be written, is none of the files that it is made from.

    Raises:
        DiagnosticError: TS107.
    """
    if any(_path(target) == _path(file) for file in files):
        message = "it is one of the files that the result is made from"
        raise DiagnosticError([Diagnostic("TS107", message, Location(target))])


def _path(file: str) -> str:
    """Resolve links; a name that no file can have is left to those who open it."""
    return file if "\0" in file else os.path.realpath(file)


def unwritten(target: str, data: bytes) -> Source:
    """Return what is to be written to `target` as a source that is not mistaken for the file."""
    return Source(f"{target} (not written)", data.decode())


def plan_path(transfer: str) -> str:
    """Return where the plan of a transfer file lies: NAME.plan.json beside NAME.transfer.toml."""
    stem = transfer.removesuffix(".toml").removesuffix(".json").removesuffix(".transfer")
    return f"{stem}.plan.json"


def raise_errors(found: Sequence[Diagnostic]) -> None:
    """Raise what was found if any of it is an error.

    Raises:
        DiagnosticError: all of `found`.
    """
    if any(one.severity is Severity.ERROR for one in found):
        raise DiagnosticError(found)


@dataclass(frozen=True)
class _Gathered:
    """What is read on behalf of a transfer file, and what was found wrong with it."""

    transfer: Document[Transfer]
    found: list[Diagnostic]
    sources: dict[str, Source]

    def read(self, name: str, relative: str | None, model: type[M]) -> Document[M] | None:
        """Read the file that the field `name` names, if it names one and it can be read."""
        if relative is None:
            return None
        path = str(Path(self.transfer.source.file).parent / relative)
        try:
            document = load(path, model)
        except DiagnosticError as error:
            named = Label(self.transfer.source.locate(f"/{name}"), "named here")
            self.found.extend(
                replace(one, labels=(*one.labels, named)) for one in error.diagnostics
            )
            return None
        self.sources[name] = document.source
        self.found.extend(check_document(document.value, document.source))
        return document

    def manifest(self, side: Side, relative: str) -> Document[Manifest] | None:
        """Read a manifest, and see that it is of `side` and of all its ranks."""
        document = self.read(side, relative, Manifest)
        if document and document.value.side is not side:
            self.found.append(self._other_side(side, document))
        if document and not speaks_for_all(document.value):
            self.found.append(_some_ranks(document))
        return document

    def _other_side(self, side: Side, document: Document[Manifest]) -> Diagnostic:
        return Diagnostic(
            "TS121",
            f"this manifest is named as the {side}'s, and it is a {document.value.side}'s",
            document.source.locate("/side"),
            expected=f'"{side}"',
            found=f'"{document.value.side}"',
            labels=(Label(self.transfer.source.locate(f"/{side}"), "named here"),),
        )


def _some_ranks(document: Document[Manifest]) -> Diagnostic:
    manifest = document.value
    return Diagnostic(
        "TS120",
        f"the {manifest.side}'s manifest speaks for ranks {manifest.ranks}, but its world has "
        f"{manifest.world_size:,}",
        document.source.locate("/ranks"),
        help="merge the manifests of all ranks with tranship merge",
    )
