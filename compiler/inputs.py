"""What the passes read: manifests, policy, placement and options, with their places in files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tranship.schema.codec import Source, digest, dump
from tranship.schema.diagnostics import Location
from tranship.schema.manifest import Manifest, Side
from tranship.schema.placement import Placement
from tranship.schema.plan import PlanSide
from tranship.schema.policy import Policy
from tranship.schema.template import parse_template
from tranship.schema.transfer import Options

POLICY = "policy"

BLANK_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Inputs:
    """Everything that decides a plan. `sources` finds lines for "sender", "receiver", "policy"."""

    sender: Manifest
    receiver: Manifest
    policy: Policy | None = None
    placement: Placement | None = None
    options: Options = field(default_factory=Options)
    sources: Mapping[str, Source] = field(default_factory=dict[str, Source])

    def at(self, document: str, pointer: str) -> Location:
        """Where `pointer` lies in the named input."""
        source = self.sources.get(document)
        return source.locate(pointer) if source else Location(document, pointer)

    def manifest(self, side: Side) -> Manifest:
        """The manifest of one side."""
        return self.sender if side is Side.SENDER else self.receiver


def buffer_layout(manifest: Manifest, name: str) -> str:
    """Return the declared layout of a buffer family, whatever its indices are called."""
    texts = parse_template(name).texts
    return next(b.layout for b in manifest.buffers if parse_template(b.name).texts == texts)


def draft_side(manifest: Manifest) -> PlanSide:
    """Repeat a manifest's axes and tables, all that the passes read; the digest is blank."""
    return PlanSide(
        manifest=BLANK_DIGEST,
        world_size=manifest.world_size,
        axes=manifest.axes,
        tables=manifest.tables,
    )


def plan_side(manifest: Manifest) -> PlanSide:
    """Repeat what a finished plan holds of a manifest: its digest, axes and tables."""
    return draft_side(manifest).model_copy(update={"manifest": digest(dump(manifest))})


def name_matches(name: str, pattern: str) -> bool:
    """Whether a policy's pattern, in which `*` alone is special, is the whole of a family name."""
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))
