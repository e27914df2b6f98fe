"""Small texts between all ranks, by way of a torch.distributed store.

They do not use the connections that carry weights: gloo closes all connections of a group when one
operation times out (torch 2.13), and then nobody could be told why. A store outlives that.
"""

import json
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from tranship.runtime.transports.protocol import Gathered, Meanwhile, TransportError, nothing

_WITHDRAWN = "null"
"""Stands for what was to be handed out after a member has given up."""


@dataclass(slots=True)
class Control:
    """One member's end. Member 0 collects the texts of all and hands them out.

    A gather takes `patience` seconds at most while member 0 and the store live, and twice as long
    where they do not. `store` must not be used for anything else.
    """

    store: Store
    member: int
    size: int
    patience: float
    _gathers: int = 0

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every member the texts of all.

        Raises:
            TransportError: the store or member 0 is gone.
        """
        number, self._gathers = self._gathers, self._gathers + 1
        try:
            if self.member != 0:
                self.store.set(_key(number, self.member), payload)
            meanwhile()
            if self.member == 0:
                return self._hand_out(number, payload)
            return self._result(number)
        except RuntimeError as error:
            raise TransportError(f"control message {number} did not come back: {error}") from error

    def _result(self, number: int) -> Gathered:
        """Wait for what member 0 hands out, or withdraw: whoever is first decides for all."""
        result = _key(number, "all")
        try:
            self.store.wait([result], timedelta(seconds=2 * self.patience))
        except RuntimeError:
            if self.store.compare_set(result, "", _WITHDRAWN).decode() == _WITHDRAWN:
                raise
        return self._read(self.store.get(result).decode())

    def _read(self, text: str) -> Gathered:
        return (None,) * self.size if text == _WITHDRAWN else tuple(json.loads(text))

    def _hand_out(self, number: int, payload: str) -> Gathered:
        keys = [_key(number, member) for member in range(1, self.size)]
        try:
            self.store.wait(keys, timedelta(seconds=self.patience))
            arrived = [True] * len(keys)
        except RuntimeError:
            arrived = [self.store.check([key]) for key in keys]
        present = [key for key, there in zip(keys, arrived, strict=True) if there]
        found = iter(self.store.multi_get(present) if present else [])
        texts = (payload, *(next(found).decode() if there else None for there in arrived))
        handed_out = self.store.compare_set(_key(number, "all"), "", json.dumps(texts)).decode()
        if number and all(arrived):
            # Whoever is heard of has read what was handed out before.
            for name in (*range(1, self.size), "all"):
                self.store.delete_key(_key(number - 1, name))
        return self._read(handed_out)


def _key(number: int, whose: int | str) -> str:
    return f"{number}/{whose}"
