"""What a plan costs: bytes on the wire by rank, and the least time that its links allow."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from tranship.cli.layout import count, size_text, time_text
from tranship.schema.canonical import Json
from tranship.schema.expression import IntArray, evaluate, parse
from tranship.schema.flows import by_rank, lanes, stream
from tranship.schema.manifest import Side
from tranship.schema.placement import Links, Placement, Seat, share_hosts
from tranship.schema.plan import TransferPlan


@dataclass(frozen=True)
class Load:
    """Bytes on the wire, padding included, of the ranks of one side."""

    most: int
    mean: int
    rank: int


@dataclass(frozen=True)
class Bound:
    """The link that needs longest: no replay is faster than its bytes at full speed."""

    seconds: float
    link: str
    side: Side
    host: int
    device: int
    size: int


@dataclass(frozen=True)
class Summary:
    """What a plan moves. Bytes are those on the wire, padding included."""

    moves: int
    size: int
    sender: Load
    receiver: Load
    bound: Bound | None


@dataclass(frozen=True)
class _Traffic:
    """Bytes between pairs of ranks: `n` pairs."""

    sender: IntArray
    receiver: IntArray
    size: IntArray


def summarize(plan: TransferPlan, placement: Placement | None) -> Summary:
    """Add up what all edges of a plan move."""
    sender = np.zeros(plan.sender.world_size, dtype=np.int64)
    receiver = np.zeros(plan.receiver.world_size, dtype=np.int64)
    moves, pairs = 0, list[_Traffic]()
    links = placement.links if placement else None
    meet = placement and share_hosts(placement, len(sender), len(receiver))
    for edge in plan.edges:
        part = stream(plan, edge)
        own = by_rank(plan, edge, part)
        sender += own[0]
        receiver += own[1]
        moves += part.moves
        if links and meet:
            found = lanes(plan, edge, part)
            pairs.append(_Traffic(found.sender, found.receiver, found.size))
    bound = None
    if placement and links and moves:
        bound = (
            _bound(_together(pairs), placement, links)
            if pairs
            else _network_bound(placement, links, sender, receiver)
        )
    return Summary(moves, int(sender.sum()), _load(sender), _load(receiver), bound)


def _load(total: IntArray) -> Load:
    return Load(int(total.max()), int(total.sum()) // len(total), int(total.argmax()))


def _together(parts: Sequence[_Traffic]) -> _Traffic:
    return _Traffic(
        np.concatenate([part.sender for part in parts]),
        np.concatenate([part.receiver for part in parts]),
        np.concatenate([part.size for part in parts]),
    )


def _bound(traffic: _Traffic, placement: Placement, links: Links) -> Bound | None:
    """Find the link that needs longest, taking every device's links in either direction."""
    ends = {
        Side.SENDER: _seats(placement.sender, traffic.sender),
        Side.RECEIVER: _seats(placement.receiver, traffic.receiver),
    }
    same = ends[Side.SENDER] == ends[Side.RECEIVER]
    on_host = same[:, 0]
    on_device = on_host & same[:, 1]
    kinds = {
        "device": (on_device, links.device_gb_per_s),
        "host": (on_host & ~on_device, links.host_gb_per_s),
        "network": (~on_host, links.network_gb_per_s),
    }
    bounds = [
        _slowest(ends[side][chosen], traffic.size[chosen], rate, link, side)
        for link, (chosen, rate) in kinds.items()
        for side in Side
        if chosen.any()
    ]
    return max(bounds, key=lambda bound: bound.seconds, default=None)


def _network_bound(
    placement: Placement, links: Links, sender: IntArray, receiver: IntArray
) -> Bound:
    """Find the link that needs longest where no two ranks share a host; bytes by rank."""
    bounds = [
        _slowest(
            _seats(seat, np.arange(len(sizes), dtype=np.int64)),
            sizes,
            links.network_gb_per_s,
            "network",
            side,
        )
        for seat, sizes, side in (
            (placement.sender, sender, Side.SENDER),
            (placement.receiver, receiver, Side.RECEIVER),
        )
    ]
    return max(bounds, key=lambda bound: bound.seconds)


def _slowest(seats: IntArray, sizes: IntArray, rate: float, link: str, side: Side) -> Bound:
    devices, group = np.unique(seats, axis=0, return_inverse=True)
    total = np.zeros(len(devices), dtype=np.int64)
    np.add.at(total, group.reshape(-1), sizes)
    worst = int(total.argmax())
    size, (host, device) = int(total[worst]), devices[worst].tolist()
    return Bound(size / (rate * 1e9), link, side, host, device, size)


def _seats(seat: Seat, ranks: IntArray) -> IntArray:
    """The host and device of each rank, `[n, 2]`."""
    entries = [evaluate(parse(entry), {"rank": ranks}, {}) for entry in (seat.host, seat.device)]
    return np.stack([np.broadcast_to(np.asarray(entry), ranks.shape) for entry in entries], axis=1)


def summary_parts(summary: Summary) -> Iterator[tuple[str, Sequence[str]]]:
    """Write a summary as lines: what they are about, and their parts."""
    yield "bytes", [f"{size_text(summary.size)} in {count(summary.moves, 'move')}"]
    for side, load in (("senders", summary.sender), ("receivers", summary.receiver)):
        ratio = f", {load.most / load.mean:.2f} of the average" if load.mean else ""
        parts = [f"at most {size_text(load.most)} (rank {load.rank}){ratio}"]
        yield side, [*parts, f"{size_text(load.mean)} on average"]
    if summary.bound:
        bound = summary.bound
        where = f"{bound.side} device {bound.device} of host {bound.host}"
        verb = "leave" if bound.side is Side.SENDER else "enter"
        parts = [f"at least {time_text(bound.seconds)}"]
        yield "time", [*parts, f"{size_text(bound.size)} {verb} {where} over its {bound.link} link"]


def summary_members(summary: Summary) -> dict[str, Json]:
    """Write a summary for programs."""
    return asdict(summary)
