"""Small texts between all ranks, by way of a torch.distributed store.

They do not use the connections that carry weights: gloo closes all connections of a group when one
operation times out (torch 2.13), and then nobody could be told why. A store outlives that.
"""

import json
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from tranship.runtime.transports.protocol import Gathered, TransportError


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

    def gather(self, payload: str) -> Gathered:
        """Give every member the texts of all.

        Raises:
            TransportError: the store or member 0 is gone.
        """
        number, self._gathers = self._gathers, self._gathers + 1
        try:
            self.store.set(_key(number, self.member), payload)
            if self.member == 0:
                self._hand_out(number)
            result = _key(number, "all")
            self.store.wait([result], timedelta(seconds=2 * self.patience))
            return tuple(json.loads(self.store.get(result)))
        except RuntimeError as error:
            raise TransportError(f"control message {number} did not come back: {error}") from error

    def _hand_out(self, number: int) -> None:
        keys = [_key(number, member) for member in range(self.size)]
        try:
            self.store.wait(keys, timedelta(seconds=self.patience))
            arrived = [True] * self.size
        except RuntimeError:
            arrived = [self.store.check([key]) for key in keys]
        pairs = zip(keys, arrived, strict=True)
        texts = [self.store.get(key).decode() if there else None for key, there in pairs]
        self.store.set(_key(number, "all"), json.dumps(texts))
        if number and all(arrived):
            # Whoever is heard of has read what was handed out before.
            for name in (*range(self.size), "all"):
                self.store.delete_key(_key(number - 1, name))


def _key(number: int, whose: int | str) -> str:
    return f"{number}/{whose}"
