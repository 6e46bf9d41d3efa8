from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rpcgroup import changes as module
from rpcgroup.changes import Changes
from rpcgroup.errors import GroupError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.tracker import Change, ChangeKind

PATIENCE = 30.0


class Source:
    """What a group does with its subscribers."""

    def __init__(self) -> None:
        self.unsubscribed: list[Changes] = []
        self.blocked = 0
        self.changes = Changes(self.unsubscribed.append, self._before_blocking)

    def _before_blocking(self) -> None:
        self.blocked += 1

    def put(self, *names: str) -> None:
        for name in names:
            self.changes.put(Change(ChangeKind.JOINED, MemberRecord(name=name)))


@pytest.fixture
def source() -> Source:
    return Source()


def test_they_come_in_order_and_end(source: Source) -> None:
    source.put("a", "b", "c")
    source.changes.end()
    assert [change.member.name for change in source.changes] == ["a", "b", "c"]
    assert source.changes.get() is None
    with pytest.raises(StopIteration):
        next(source.changes)


def test_a_reader_waits_for_the_next(source: Source) -> None:
    read: list[str] = []
    thread = threading.Thread(target=lambda: read.extend(c.member.name for c in source.changes))
    thread.start()
    source.put("a")
    source.put("b")
    source.changes.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert read == ["a", "b"]


def test_get_gives_up_in_time(source: Source) -> None:
    assert source.changes.get(0.01) is None
    source.put("a")
    change = source.changes.get(0.01)
    assert change is not None
    assert change.member.name == "a"


def test_whoever_blocks_says_so_first(source: Source) -> None:
    source.put("a")
    next(source.changes)
    assert source.blocked == 1


def test_closing_unsubscribes_and_ends(source: Source) -> None:
    with source.changes as changes:
        source.put("a")
    assert source.unsubscribed == [changes]
    assert [change.member.name for change in changes] == ["a"]


def test_a_reader_that_falls_behind_is_told(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 3)
    source.put(*"abcde")
    with pytest.raises(GroupError, match="fell behind by more than 3 membership changes"):
        next(source.changes)
    assert next(source.changes).member.name in "de"
    source.put("f")
    source.changes.end()
    assert [change.member.name for change in source.changes][-1] == "f"


def test_asyncio_reads_them(source: Source) -> None:
    async def read() -> list[str]:
        names = []
        async for change in source.changes:
            names.append(change.member.name)
            if len(names) == 2:
                feeder.start()
        return names

    def feed() -> None:
        source.put("c", "d")
        source.changes.end()

    feeder = threading.Thread(target=feed)
    source.put("a", "b")
    assert asyncio.run(read()) == ["a", "b", "c", "d"]
    feeder.join(PATIENCE)


def test_a_reader_in_asyncio_can_be_cancelled(source: Source) -> None:
    async def read() -> Any:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(source.changes.__anext__(), 0.01)
        source.put("a")
        return (await source.changes.__anext__()).member.name

    assert asyncio.run(read()) == "a"
    source.put("b")  # its loop is gone: nobody is to be woken


def test_the_end_wakes_every_reader(source: Source) -> None:
    ended = threading.Semaphore(0)

    def read() -> None:
        list(source.changes)
        ended.release()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    source.changes.end()
    for thread in threads:
        assert ended.acquire(timeout=PATIENCE)
        thread.join()
