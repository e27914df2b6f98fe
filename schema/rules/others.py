"""Rules for the documents beside manifests and plans: policies, placements, transfer files."""

import re
from collections.abc import Iterator, Sequence

from tranship.schema.canonical import Path
from tranship.schema.dtypes import CODE_DTYPES, is_float, widens
from tranship.schema.manifest import MAX_RANK_COUNT
from tranship.schema.mesh import RANK
from tranship.schema.placement import Placement, Seat
from tranship.schema.policy import Allowance, Policy
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.scopes import Scope, Site, check_site
from tranship.schema.transfer import Transfer


def allowances(policy: Policy) -> Iterator[Finding]:
    """Find allowances for edges that lose nothing or cannot be, and entries that are repeated."""
    for number, allowance in enumerate(policy.allow):
        reason = _pointless(allowance)
        if reason is not None:
            yield Finding(
                "TS190",
                ("allow", number),
                f"no {allowance.edge} from {allowance.sender_dtype} to {allowance.receiver_dtype} "
                "needs to be allowed",
                expected=reason,
                found=f"{allowance.sender_dtype} to {allowance.receiver_dtype}",
            )
    edges = [(a.edge, a.tensors, a.sender_dtype, a.receiver_dtype) for a in policy.allow]
    yield from _repeated("allow", edges)
    yield from _repeated("unused", [entry.tensors for entry in policy.unused])


def _pointless(allowance: Allowance) -> str | None:
    """What the dtypes should be; None where they are."""
    sender, receiver = allowance.sender_dtype, allowance.receiver_dtype
    match allowance.edge:
        case "cast" if widens(sender, receiver):
            return "a receiver dtype that lacks some values of the sender's"
        case "dequantize" if sender not in CODE_DTYPES or not is_float(receiver):
            return "codes on the sender, floating point on the receiver"
        case "requantize" if sender not in CODE_DTYPES or receiver not in CODE_DTYPES:
            return "codes on both sides"
        case _:
            return None


def _repeated(field: str, entries: Sequence[object]) -> Iterator[Finding]:
    for number, entry in enumerate(entries):
        first = list(entries).index(entry)
        if first < number:
            yield Finding(
                "TS191",
                (field, number),
                f"{field}[{number}] says the same as {field}[{first}]",
                first=(field, first),
                help="keep the one with the better reason",
            )


def seats(placement: Placement) -> Iterator[Finding]:
    """Check the expressions of a placement."""
    for side in ("sender", "receiver"):
        yield from check_seat((side,), getattr(placement, side), MAX_RANK_COUNT)


def check_seat(path: Path, seat: Seat, world_size: int) -> Iterator[Finding]:
    """Check that where a rank sits is a number for each of `world_size` ranks."""
    scope = Scope({RANK: (0, world_size - 1)}, {})
    yield from check_site(Site((*path, "host"), seat.host, scope))
    yield from check_site(Site((*path, "device"), seat.device, scope))


_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
_DOCUMENT = re.compile(r"\.(json|toml)", re.IGNORECASE)


def paths(transfer: Transfer) -> Iterator[Finding]:
    """Check the paths of a transfer file."""
    for field in ("sender", "receiver", "policy", "placement"):
        path = getattr(transfer, field)
        if path is None:
            continue
        if _ABSOLUTE.match(path) or "\\" in path or "\0" in path:
            expected = "a path from the folder of this file, with / between its parts"
            yield Finding("TS192", (field,), f"path {path!r} is not relative", expected)
        elif not _DOCUMENT.fullmatch(path[-5:]):
            yield Finding(
                "TS192",
                (field,),
                f"path {path!r} names no document",
                expected="a name that ends in .json or .toml",
            )
    if transfer.sender == transfer.receiver:
        yield Finding(
            "TS193",
            ("receiver",),
            "sender and receiver are the same file",
            expected="a manifest of each side",
            found=transfer.receiver,
        )
