"""All ranks of a transfer as threads of one process, each with a model of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tests.runtime.local_jobs import WORLD, at_once
from tests.runtime.transfers import Transfer
from tranship.runtime.errors import DistributedError
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.transports.protocol import Transport, TransportError
from tranship.schema.manifest import Side

Sessions = list[Any]
"""Sessions, or what was raised instead."""


def bind_all(transfer: Transfer, connect: Callable[[int], Transport]) -> tuple[Sessions, list[Any]]:
    """Connect and bind all members at once; return their sessions and their models."""
    models = [*transfer.models(Side.SENDER), *transfer.models(Side.RECEIVER)]

    def bind(member: int) -> Sender | Receiver | Exception:
        side, rank = WORLD.seat(member)
        live, plan = live_tensors(models[member]), transfer.plan
        try:
            end = connect(member)
            if side is Side.SENDER:
                return Sender.bind(plan, transfer.sender, live, end, rank)
            return Receiver.bind(plan, transfer.receiver, live, end, rank, transfer.recipes)
        except (DistributedError, TransportError) as error:
            return error

    with ThreadPoolExecutor(WORLD.size) as pool:
        return list(pool.map(bind, range(WORLD.size))), models


def step_all(transfer: Transfer, sessions: Sessions, models: list[Any], version: int) -> list[Any]:
    """Train, publish and receive; return what each call returned, or raised."""
    for rank in range(WORLD.senders):
        transfer.train(models[rank], rank, version)
    return publish_all(sessions, version)


def publish_all(sessions: Sessions, version: int) -> list[Any]:
    """Publish and receive what there is."""
    calls = [
        partial(own.publish if isinstance(own, Sender) else own.receive, version)
        for own in sessions
    ]
    return list(at_once(calls))


def wrong_in(transfer: Transfer, models: list[Any], version: int) -> list[str]:
    """Return the names of receivers' tensors that do not hold a version."""
    engines = enumerate(models[WORLD.senders :])
    return [name for rank, model in engines for name in transfer.wrong(model, rank, version)]
