from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from rpcgroup.local.observer import Observer, readable
from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, GroupView, RecordEvent

PATIENCE = 30.0


class Silent:
    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None: ...

    def on_drain(self, request: DrainRequest) -> None: ...


class Watched:
    """An observer of a memory group, and a wait for what it comes to see."""

    def __init__(self) -> None:
        self.group = MemoryGroup()
        self.changed = threading.Condition()
        self.seat = MemoryRendezvous(self.group)
        self.observer = Observer(self.seat, self._on_change)

    def _on_change(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, seen: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(seen, PATIENCE)

    def close(self) -> None:
        self.observer.close()
        self.seat.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.close()


@pytest.fixture
def member(watched: Watched) -> Iterator[MemoryRendezvous]:
    seat = MemoryRendezvous(watched.group)
    seat.join(MemberRecord("w", state=MemberState.READY), admit=lambda *_: None, listener=Silent(), timeout=5)
    yield seat
    seat.close()


def test_it_sees_members_come_and_go(watched: Watched, member: MemoryRendezvous) -> None:
    watched.wait_for(lambda: list(watched.observer.last.members) == ["w"])
    member.leave(5)
    watched.wait_for(lambda: not watched.observer.last.members)


def test_it_sees_what_workers_say_of_themselves(watched: Watched, member: MemoryRendezvous) -> None:
    member.put_stats(b'{"calls": 3}')
    watched.wait_for(lambda: watched.observer.last.stats.get("w") == {"calls": 3})


def test_an_outage_keeps_what_was_seen(watched: Watched, member: MemoryRendezvous) -> None:
    watched.wait_for(lambda: list(watched.observer.last.members) == ["w"])
    with watched.group.outage():
        watched.wait_for(lambda: watched.observer.last.away_since is not None)
        assert list(watched.observer.last.members) == ["w"]
    watched.wait_for(lambda: watched.observer.last.away_since is None)


@pytest.mark.parametrize("stats", [b"", b"\xff", b"[1]", b"3"])
def test_stats_that_are_no_object_are_nothing(stats: bytes) -> None:
    assert readable(stats) == {}
