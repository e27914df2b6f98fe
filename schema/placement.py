"""The placement: which ranks share a device or a host, in symbols, and how fast the links are."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tranship.schema.expression import evaluate, parse
from tranship.schema.manifest import Frozen, IntExpression
from tranship.schema.mesh import RANK

PLACEMENT_FORMAT = "tranship.placement/1"

Rate = Annotated[float, Field(gt=0, le=1e9)]


class Seat(Frozen):
    """Where one side's ranks sit: expressions over `rank`. `device` counts within a host."""

    host: IntExpression
    device: IntExpression


class Links(Frozen):
    """Speeds of one device's links in gigabytes per second, for estimates."""

    device_gb_per_s: Rate
    host_gb_per_s: Rate
    network_gb_per_s: Rate


class Placement(Frozen):
    """Both sides' seats. Equal host and device numbers mean one physical device."""

    format: Literal["tranship.placement/1"]
    sender: Seat
    receiver: Seat
    links: Links | None = None


def share_hosts(placement: Placement, senders: int, receivers: int) -> bool:
    """Whether a sender and a receiver sit on one host; else all pairs of ranks are equally far."""
    hosts = [
        np.unique(evaluate(parse(seat.host), {RANK: np.arange(count, dtype=np.int64)}, {}))
        for seat, count in ((placement.sender, senders), (placement.receiver, receivers))
    ]
    return bool(np.isin(hosts[0], hosts[1]).any())
