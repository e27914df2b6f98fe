"""SGLang's HTTP server as a trainer drives it, down to bodies that SGLang's own classes read."""

import base64
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tests.runtime.live_models import model_of
from tests.sglang.test_trace import FOLDER, finding_tests, missing
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime.frameworks.fsdp import fsdp_declaration
from tranship.runtime.frameworks.sglang.control import (
    LOADER,
    Bind,
    Meeting,
    NamedTensors,
    Update,
    committed_file,
)
from tranship.runtime.frameworks.sglang.loader import receive
from tranship.runtime.frameworks.sglang.server import EngineError, SglangServer
from tranship.runtime.hooks import Publisher, PublishError
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.protocol import World
from tranship.schema.codec import dump
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan
from tranship.schema.transfer import Options

Body = dict[str, object]
Answer = Callable[[str, Body], tuple[int, str]]
"""Answers a request to an endpoint with a status and a text; what it raises ends the connection."""


@dataclass
class Heard:
    """What a server was asked, in order."""

    url: str
    calls: list[tuple[str, Body]] = field(default_factory=list[tuple[str, Body]])
    keys: set[str | None] = field(default_factory=set[str | None])

    def endpoints(self) -> list[str]:
        return [endpoint for endpoint, _ in self.calls]


def good(endpoint: str, body: Body) -> tuple[int, str]:
    del endpoint, body
    return 200, '{"success": true, "message": "Success"}'


@contextmanager
def listening(answer: Answer = good) -> Generator[Heard]:
    """Serve below /engine on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prefix, _, endpoint = self.path.rpartition("/")
            assert (prefix, self.headers["Content-Type"]) == ("/engine", "application/json")
            heard.calls.append((endpoint, body))
            heard.keys.add(self.headers["Authorization"])
            try:
                status, text = answer(endpoint, body)
            except Exception:
                self.close_connection = True
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    heard = Heard(f"http://127.0.0.1:{server.server_port}/engine")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Job:
    """A trainer of one rank, and an engine of two that both hold all of it."""

    def __init__(self, folder: Path, name: str = "run") -> None:
        self.model = nn.Linear(4, 8)
        sender = fold(fsdp_declaration(self.model, rank=0, world_size=1))
        receiver = sender.model_copy(update={"side": Side.RECEIVER, "world_size": 2})
        plan = compile_transfer(sender, receiver, options=Options())
        self.files = [folder / f"{end}.json" for end in ("plan", "trainer", "engine")]
        for file, value in zip(self.files, (plan, sender, receiver), strict=True):
            file.write_bytes(dump(value))
        self.copies = [model_of(receiver, rank) for rank in range(2)]
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.name = name

    def bind(self) -> Bind:
        return Bind(
            action="bind",
            plan=committed_file(self.files[0], TransferPlan),
            manifest=committed_file(self.files[2], Manifest),
            meeting=Meeting(
                host="127.0.0.1",
                port=self.store.port,
                name=self.name,
                transport="gloo",
                timeout=20.0,
            ),
            first_rank=0,
        )

    def publisher(self, engine: SglangServer) -> Publisher:
        store, world = PrefixStore(self.name, self.store), World(1, 2)
        connect = partial(connect_gloo, store, world, Side.SENDER, 0, 20.0)
        return Publisher(self.files[0], self.files[1], self.model, connect, 0, [engine])


class Ranks:
    """The ranks of an engine, as threads; `loader.receive` finds its rank as in SGLang."""

    def __init__(self, models: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
        self.models, self.here = models, threading.local()
        context = SimpleNamespace(get_parallel=lambda: self.here)
        monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)

    def answer(self, endpoint: str, body: Body) -> tuple[int, str]:
        if endpoint == "update_weights_from_tensor":
            assert body["load_format"] == LOADER
            payloads = body["serialized_named_tensors"]
            assert isinstance(payloads, list)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(self._be, range(2), payloads))  # pyright: ignore[reportUnknownArgumentType]
        return good(endpoint, body)

    def _be(self, rank: int, payload: str) -> None:
        self.here.pp_size, self.here.tp_rank = 1, rank
        # SGLang reads it with an unpickler of its own, which the last test is about.
        given: NamedTensors = pickle.loads(base64.b64decode(payload))
        receive(self.models[rank], given)


def session(orders: int) -> list[str]:
    update = ["update_weights_from_tensor"] * orders
    around = ["begin_weight_update", *update, "end_weight_update"]
    return ["pause_generation", *around, "flush_cache", "continue_generation"]


def test_a_publisher_updates_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path)
    recomputed: list[float] = []
    copy = job.copies[1]
    # As models have it that derive something which is no tensor of theirs.
    vars(copy)["post_load_weights"] = lambda: recomputed.append(
        float(copy.get_parameter("weight")[0, 0])
    )
    with listening(Ranks(job.copies, monkeypatch).answer) as heard:
        publisher = job.publisher(SglangServer(heard.url, job.bind(), tp_size=2, api_key="secret"))
        for version in (1, 2):
            with torch.no_grad():
                job.model.weight.add_(1)
            publisher.publish()
            assert recomputed[-1] == job.model.weight[0, 0]
            for held in job.copies:
                for name, own in job.model.state_dict().items():
                    assert torch.equal(held.state_dict()[name], own), (version, name)
    assert len(recomputed) == 2
    assert heard.endpoints() == [*session(2), *session(1)]
    assert heard.keys == {"Bearer secret"}
    versions = [body.get("weight_version") for name, body in heard.calls if "tensor" in name]
    assert versions == [None, "1", "2"]


def test_a_server_that_ends_is_told_and_not_resumed(tmp_path: Path) -> None:
    job = Job(tmp_path)

    def answer(endpoint: str, body: Body) -> tuple[int, str]:
        if endpoint == "update_weights_from_tensor":
            raise RuntimeError
        return good(endpoint, body)

    with listening(answer) as heard:
        publisher = Publisher(
            job.files[0],
            job.files[1],
            job.model,
            partial(connect_gloo, PrefixStore("gone", job.store), World(1, 2), Side.SENDER, 0, 0.1),
            0,
            [SglangServer(heard.url, job.bind(), tp_size=2)],
        )
        with pytest.raises(PublishError) as caught:
            publisher.publish()
    assert "TS877: version 1 was not published: TransportError: " in str(caught.value)
    assert f"{heard.url}: TS876: was not updated to version 1: update_weights" in str(caught.value)
    assert "no answer: RemoteDisconnected: " in str(caught.value)
    assert heard.endpoints() == session(1)[:3]


def test_what_a_server_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    def answer(endpoint: str, body: Body) -> tuple[int, str]:
        if endpoint == "begin_weight_update":
            return 400, '{"success": false, "message": "a weight-update session is already open"}'
        return good(endpoint, body)

    with listening(answer) as heard:
        server = SglangServer(heard.url, Job(tmp_path).bind(), tp_size=2)
        with pytest.raises(EngineError, match=r"begin_weight_update: status 400: .*already open"):
            server.update(1)
    assert heard.endpoints() == ["begin_weight_update"]
    with pytest.raises(EngineError, match="pause_generation: no answer: ConnectionRefusedError"):
        server.pause()


@pytest.mark.sglang
@pytest.mark.skipif(missing, reason="SGLang is not installed")
def test_sglang_reads_what_it_is_sent(tmp_path: Path) -> None:
    bind = Job(tmp_path).bind()
    with listening() as heard:
        server = SglangServer(heard.url, bind, tp_size=2)
        server.pause()
        server.update(3)
        server.flush()
        server.resume()
    # The endpoint that flushes takes no body.
    sent = [call for call in heard.calls if call[0] != "flush_cache"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "http_bodies.py")],
        env=finding_tests(),
        input=json.dumps(sent),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    update = Update(action="update", version=3)
    orders = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert orders == [order.model_dump(mode="json") for order in (bind, bind, update, update)]
