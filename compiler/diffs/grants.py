"""Two policies, placements, or transfer files: what is allowed, where ranks sit, what is asked."""

from collections.abc import Iterator

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.extras import as_text, extra_changes, extras
from tranship.schema.expression import parse, to_text
from tranship.schema.manifest import IntExpression
from tranship.schema.placement import Placement, Seat
from tranship.schema.policy import Allowance, Policy, Unused
from tranship.schema.transfer import Options, Transfer

_Line = Allowance | Unused
_NONE = Policy(format="tranship.policy/1")


def policy_changes(old: Policy | None, new: Policy | None) -> Iterator[Change]:
    """Compare what two policies grant; none grants nothing."""
    one, other = old or _NONE, new or _NONE
    for field in ("allow", "unused"):
        before = {_key(line): line for line in getattr(one, field)}
        after = {_key(line): line for line in getattr(other, field)}
        for number, line in enumerate(getattr(other, field)):
            yield from _granted(before.get(_key(line)), line, f"/{field}/{number}")
        for number, line in enumerate(getattr(one, field)):
            if _key(line) not in after:
                yield Change(
                    "policy", Weight.CHANGE, line.tensors, grant_text(line), None,
                    pointer=f"/{field}/{number}",
                )  # fmt: skip
    known = frozenset({"format", "allow", "unused"})
    yield from extra_changes(one, other, known, "policy", "the policy", "")


def _key(line: _Line) -> str:
    """What a line grants, without why."""
    return line.model_dump_json(exclude={"reason"})


def _granted(old: _Line | None, new: _Line, pointer: str) -> Iterator[Change]:
    if old is None:
        text = grant_text(new)
        yield Change(
            "policy", Weight.GRANT, new.tensors, None, text, pointer=pointer, detail=new.reason
        )
    elif old.reason != new.reason:
        reasons = old.reason, new.reason
        yield Change("policy.reason", Weight.NOTE, new.tensors, *reasons, pointer=pointer)


def grant_text(line: _Line) -> str:
    """Say what a line of a policy allows."""
    if isinstance(line, Unused):
        return "may go unused"
    return f"{line.edge} from {line.sender_dtype} to {line.receiver_dtype} is allowed"


def placement_changes(old: Placement | None, new: Placement | None) -> Iterator[Change]:
    """Compare where ranks sit and how fast their links are."""
    for side in ("sender", "receiver"):
        texts = _side_text(old, side), _side_text(new, side)
        if texts[0] != texts[1]:
            yield Change("placement", Weight.CHANGE, f"{side} ranks", *texts, pointer=f"/{side}")
    known = frozenset({"format", "sender", "receiver"})
    texts = old and as_text(extras(old, known)), new and as_text(extras(new, known))
    if texts[0] != texts[1]:
        yield Change("placement.links", Weight.NOTE, "link speeds", *texts, pointer="/links")


def _side_text(placement: Placement | None, side: str) -> str | None:
    return None if placement is None else _seat_text(getattr(placement, side))


def _seat_text(seat: Seat) -> str:
    others = as_text(extras(seat, frozenset({"host", "device"})))
    return (
        f"host {_entry(seat.host)} device {_entry(seat.device)}{others if others != '{}' else ''}"
    )


def _entry(entry: IntExpression) -> str:
    return str(to_text(parse(entry)))


def transfer_changes(old: Transfer, new: Transfer) -> Iterator[Change]:
    """Compare what two transfer files name and ask for, but not the files that they name."""
    for name in ("sender", "receiver", "policy", "placement"):
        paths = getattr(old, name), getattr(new, name)
        if paths[0] != paths[1]:
            yield Change("path", Weight.NOTE, name, *paths, pointer=f"/{name}")
    yield from _option_changes(old.options, new.options)
    known = frozenset({"format", "sender", "receiver", "policy", "placement", "options"})
    yield from extra_changes(old, new, known, "transfer", "the transfer", "")


def _option_changes(old: Options, new: Options) -> Iterator[Change]:
    for name in type(new).model_fields:
        values = getattr(old, name), getattr(new, name)
        if values[0] != values[1]:
            texts = [f"{value:,}" if isinstance(value, int) else as_text(value) for value in values]
            yield Change(
                "option", Weight.CHANGE, name, texts[0], texts[1], pointer=f"/options/{name}"
            )
