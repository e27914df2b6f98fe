"""What is left of sessions and transports that are closed, or that nobody has any more."""

import gc
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime.local_jobs import WORLD, bf16, bound, codes
from tests.runtime.thread_ranks import bind_all, publish_all, step_all
from tranship.runtime.errors import DistributedError
from tranship.runtime.replay import RoundReplayer
from tranship.runtime.step import StepStats
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.meeting import Meeting, meet
from tranship.runtime.transports.protocol import Transport

ROOT = Path(__file__).parents[2]


def locally() -> Callable[[int], Transport]:
    senders, receivers = connect_locally(WORLD, 20.0)
    return lambda member: (*senders, *receivers)[member]


def by_gloo() -> Callable[[int], Transport]:
    store = HashStore()
    return lambda member: connect_gloo(store, WORLD, *WORLD.seat(member), 20.0)


def held() -> tuple[int, int, int]:
    """Count this process's open files, its threads, and the tensors that anybody has."""
    gc.collect()
    tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), tensors


@pytest.mark.parametrize("connect", [locally, by_gloo])
def test_sessions_that_are_dropped_after_a_refused_step_leave_nothing(
    connect: Callable[[], Callable[[int], Transport]],
) -> None:
    def refused() -> None:
        sessions, models = bind_all(bf16(), connect())
        assert all(isinstance(done, StepStats) for done in step_all(bf16(), sessions, models, 2))
        found = publish_all(sessions, 1)
        assert all(isinstance(error, DistributedError) for error in found)

    refused()
    before = held()
    refused()
    # What earlier tests have left may go meanwhile.
    assert all(now <= then for now, then in zip(held(), before, strict=True))


def test_a_with_block_closes_a_session_and_later_steps_are_refused_everywhere() -> None:
    job = bound(bf16())
    with job.senders[0] as sender, job.receivers[1] as receiver:
        assert (sender, receiver) == (job.senders[0], job.receivers[1])
        assert all(isinstance(done, StepStats) for done in job.step(1))
    sender.close()
    results = job.step(2)
    assert codes(results) == ["TS838", "TS838"]
    for name in ("sender rank 0", "receiver rank 1"):
        assert f"{name}: TS838: the session is closed" in str(results[1])
    assert all(receiver.serving_allowed for receiver in job.receivers)


@pytest.mark.parametrize("before", [False, True])
def test_a_model_that_has_its_session_goes_and_the_session_is_closed_once(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    closed: list[int] = []

    def close(replayer: RoundReplayer) -> None:
        closed.append(id(replayer))

    def models() -> list[weakref.ref[nn.Module]]:
        job = bound(bf16())
        for model, session in zip(job.engines, job.receivers, strict=True):
            vars(model)["session"] = session
            if before:
                session.close()
        return [weakref.ref(model) for model in job.engines]

    monkeypatch.setattr(RoundReplayer, "close", close)
    held_weakly = models()
    gc.collect()
    assert [model() for model in held_weakly] == [None] * WORLD.receivers
    assert len(closed) == len(set(closed)) == WORLD.size


LIVES_ON = """
import builtins, sys
from tests.runtime.local_jobs import bf16, bound
from tranship.runtime.replay import RoundReplayer

RoundReplayer.close = lambda replayer: sys.stderr.write("closed")
job = bound(bf16())
builtins.kept = bound(bf16())
job.senders[0].close()
"""


def test_the_end_of_a_process_closes_nothing_and_says_nothing() -> None:
    command = [sys.executable, "-X", "dev", "-c", LIVES_ON]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("closed")) == (0, 1), done.stderr
    assert "Exception" not in done.stderr


# --- sockets --------------------------------------------------------------------------------------


@pytest.fixture
def places(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories for sockets are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    return short_folder


def met() -> list[Meeting]:
    store = HashStore()

    def come(member: int) -> Meeting:
        return meet(store, WORLD, member, "a GPU", 20.0)

    with ThreadPoolExecutor(WORLD.size) as pool:
        return list(pool.map(come, range(WORLD.size)))


def test_sockets_of_ranks_that_met_and_did_not_bind_are_removed(places: Path) -> None:
    meetings = met()
    assert len(list(places.iterdir())) == WORLD.size
    meetings[0].stop_listening()
    assert len(list(places.iterdir())) == WORLD.size - 1
    del meetings
    gc.collect()
    assert list(places.iterdir()) == []


ENDS = """
import os
import torch
from torch import nn
from torch.distributed import HashStore
from tranship.runtime.transports.meeting import meet
from tranship.runtime.transports.protocol import World

met = meet(HashStore(), World(1, 0), 0, "a GPU", 20.0)
if not (child := os.fork()):
    raise SystemExit
os.waitpid(child, 0)
assert met.listener.path.exists(), "a fork has removed it"
raise ValueError("training has failed")
"""


def test_the_socket_of_a_process_that_ends_is_removed_by_it_and_by_no_fork(
    short_folder: Path,
) -> None:
    environment = os.environ | {"TMPDIR": str(short_folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ENDS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("ValueError: training has failed\n"), done.stderr
    assert list(short_folder.iterdir()) == []


def test_ranks_meet_elsewhere_where_paths_are_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    for meeting in met():
        assert meeting.listener.path.exists()
        meeting.stop_listening()
        assert not meeting.listener.path.parent.exists()
    assert list(long.iterdir()) == []
