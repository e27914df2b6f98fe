"""Drive an SGLang server over HTTP while it is updated (0.5.23, entrypoints/http_server.py)."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tranship.runtime.frameworks.sglang.control import LOADER, Bind, Update, serialized


class EngineError(RuntimeError):
    """A server refused a request, or is gone."""


@dataclass(slots=True)
class SglangServer:
    """One server, as `hooks.Publisher` drives it; it binds with the first update.

    Attributes:
        url: where it listens, as `http://engine-0:30000`.
        bind: what its ranks are to bind to.
        tp_size: number of its ranks.
        pause_mode: what becomes of requests that are running: they are put back into the queue and
            go on with the new weights, or are aborted. (With SGLang's third mode, `in_place`, the
            cache cannot be flushed.)
        api_key: the server's admin key, or else its key, if it has one.
        timeout: seconds to wait for an answer. An update takes as long as the slowest sender.
    """

    url: str
    bind: Bind
    tp_size: int
    pause_mode: Literal["retract", "abort"] = "retract"
    api_key: str | None = None
    timeout: float = 900.0
    _bound: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.url

    def pause(self) -> None:
        """Stop generating.

        Raises:
            EngineError: the server refused, or is gone.
        """
        self._post("pause_generation", {"mode": self.pause_mode})

    def update(self, version: int) -> None:
        """Receive a version in one session of the server's, while all senders publish it.

        Raises:
            EngineError: the server refused, or is gone. It ends itself if an update fails.
        """
        self._post("begin_weight_update", {"selector": "target"})
        bound, self._bound = self._bound, False
        if not bound:
            self._order(self.bind, None)
        self._order(Update(action="update", version=version), f"{version}")
        # Whoever failed in between was ended by that, and is bound anew when it is back.
        self._bound = True
        self._post("end_weight_update", {})

    def flush(self) -> None:
        """Forget what was computed with earlier weights.

        Raises:
            EngineError: the server refused, or is gone.
        """
        self._post("flush_cache", {})

    def resume(self) -> None:
        """Go on generating.

        Raises:
            EngineError: the server refused, or is gone.
        """
        self._post("continue_generation", {})

    def _order(self, order: Bind | Update, weight_version: str | None) -> None:
        body = {
            "serialized_named_tensors": serialized(order, self.tp_size),
            "load_format": LOADER,
            "flush_cache": False,
            "weight_version": weight_version,
            "selector": "target",
        }
        self._post("update_weights_from_tensor", body)

    def _post(self, endpoint: str, body: Mapping[str, object]) -> None:
        try:
            status, text = self._answer(endpoint, json.dumps(body))
        except (OSError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
            raise EngineError(f"{endpoint}: no answer: {reason}") from error
        if status != http.client.OK:
            raise EngineError(f"{endpoint}: status {status}: {text.strip()}")

    def _answer(self, endpoint: str, body: str) -> tuple[int, str]:
        """Send one request past all proxies, and return status and body of the answer."""
        url = urlsplit(self.url)
        secure = url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(url.netloc, timeout=self.timeout)
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            connection.request("POST", f"{url.path.rstrip('/')}/{endpoint}", body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", errors="replace")
        finally:
            connection.close()
