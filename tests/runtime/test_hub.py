"""Texts between members that are threads of one process, over real sockets."""

import struct
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tranship.runtime.sharing.channel import Channel
from tranship.runtime.sharing.sockets import connect, listen
from tranship.runtime.transports.control import Control
from tranship.runtime.transports.hub import Hub, Spoke, join_hub, joined, open_hub, parted
from tranship.runtime.transports.protocol import Gathered, TransportError

SIZE = 3
LONG = 20.0
"""Seconds that nobody waits for, unless something is broken."""
SHORT = 0.2


@dataclass(frozen=True)
class Members:
    """All ends; `spokes` and their `channels` are of members 1 and 2."""

    hub: Hub
    spokes: tuple[Spoke, ...]
    channels: tuple[Channel, ...]

    def gather(self, texts: Sequence[str], silent: tuple[int, ...] = ()) -> dict[int, Gathered]:
        """Let all members but the silent ones gather at once; return what each got."""
        calls = {0: self.hub.gather, 1: self.spokes[0].gather, 2: self.spokes[1].gather}
        with ThreadPoolExecutor(SIZE) as pool:
            found = {
                member: pool.submit(call, texts[member])
                for member, call in calls.items()
                if member not in silent
            }
        return {member: future.result() for member, future in found.items()}

    def close_hub(self) -> None:
        for channel in self.hub.channels.values():
            channel.close()


def connected(directory: Path, timeout: float, stack: ExitStack) -> Members:
    directory.chmod(0o700)
    listener = stack.enter_context(closing(listen(directory)))
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_hub, listener, 0, SIZE, timeout)
        channels = [stack.enter_context(closing(connect(listener.path, LONG))) for _ in "12"]
        # Members may come in any order.
        second = join_hub(channels[1], 2, SIZE, timeout)
        first = join_hub(channels[0], 1, SIZE, timeout)
    members = Members(opening.result(), (first, second), tuple(channels))
    stack.callback(members.close_hub)
    return members


@pytest.fixture
def members(tmp_path: Path) -> Generator[Members]:
    with ExitStack() as stack:
        yield connected(tmp_path, LONG, stack)


@pytest.fixture
def hurried(tmp_path: Path) -> Generator[Members]:
    with ExitStack() as stack:
        yield connected(tmp_path, SHORT, stack)


def test_all_members_get_the_texts_of_all_each_time(members: Members) -> None:
    for turn in range(4):
        texts = (f"zero {turn}", "" if turn == 1 else f"one {turn}", f"zwei \u00e4 {turn}" * 1000)
        assert members.gather(texts) == {0: texts, 1: texts, 2: texts}


@pytest.mark.parametrize("gone", [1, 2])
def test_a_member_that_is_gone_says_nothing_from_then_on(members: Members, gone: int) -> None:
    assert members.gather("abc")[0] == ("a", "b", "c")
    members.channels[gone - 1].close()
    for texts in ("def", "ghi"):
        left = tuple(None if member == gone else text for member, text in enumerate(texts))
        assert members.gather(texts, silent=(gone,)) == {0: left, 3 - gone: left}


def test_without_the_hub_the_others_raise(members: Members) -> None:
    assert members.gather("abc")[0] == ("a", "b", "c")
    members.close_hub()
    for spoke in members.spokes:
        with pytest.raises(TransportError, match="no answer"):
            spoke.gather("d")


def test_a_late_member_is_not_waited_for(hurried: Members) -> None:
    left = ("a", "b", None)
    assert hurried.gather("abc", silent=(2,)) == {0: left, 1: left}
    # It is not let in again: its texts would be those of another call.
    with pytest.raises(TransportError):
        hurried.spokes[1].gather("c")
    left = ("d", "e", None)
    assert hurried.gather("def", silent=(2,)) == {0: left, 1: left}


def test_members_that_never_come_are_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with closing(listen(tmp_path)) as listener:
        with pytest.raises(TransportError, match="not all ranks came"):
            open_hub(listener, 0, SIZE, SHORT)


@pytest.mark.parametrize("late", [(0, 0, 1.6), (0, 0.8, 1.6), (2.6, 0, 2.5), (2.6, 0, 0)])
@pytest.mark.parametrize("way", ["hub", "store"])
def test_members_are_told_of_all_or_all_of_them_miss_one(
    tmp_path: Path, late: tuple[float, float, float], way: str
) -> None:
    store = HashStore()
    with ExitStack() as stack:
        members = connected(tmp_path, SHORT, stack)
        controls = [Control(store, member, SIZE, SHORT) for member in range(SIZE)]
        talks = [members.hub, *members.spokes] if way == "hub" else controls

        def gather(member: int) -> Gathered | None:
            time.sleep(late[member] * SHORT)
            try:
                return talks[member].gather(f"text {member}")
            except TransportError:
                return None

        with ThreadPoolExecutor(SIZE) as pool:
            found = list(pool.map(gather, range(SIZE)))
    whole = [texts is not None and None not in texts for texts in found]
    assert all(whole) or not any(whole)


TEXTS = st.lists(st.none() | st.text(max_size=20), max_size=6)


@given(TEXTS)
def test_texts_that_are_joined_come_apart_as_they_were(texts: list[str | None]) -> None:
    assert parted(joined(texts), len(texts)) == tuple(texts)


@given(TEXTS, st.data())
def test_bytes_that_are_no_texts_are_refused(texts: list[str | None], data: st.DataObject) -> None:
    whole = joined(texts)
    other = data.draw(st.sampled_from([whole[:-1], whole + b"x", whole[: len(whole) // 2]]))
    assume(other != whole)
    with pytest.raises(ValueError, match=r"too short|not those"):
        parted(other, len(texts))


def test_lengths_below_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="not those"):
        parted(struct.pack("<2q", -2, 0), 2)
