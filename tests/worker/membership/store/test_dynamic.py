"""What the suite of all rendezvous does not say of it: see ../test_rendezvous.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rpcgroup.errors import JoinError, RendezvousUnavailableError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.dynamic import DynamicRendezvous
from rpcgroup.testing.rendezvous import RecordingListener

TIMEOUT = 20.0
NEVER = 3600.0

Connect = Callable[[], Store]


class FailingStore:
    """Works until it is told to fail; then it never does again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        if self.fails:
            raise RuntimeError("Connection reset by peer")
        return getattr(self._store, name)


class SilentStore:
    """Works until it is told to be silent; answers again when it is told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked = threading.Event()
        self.speaks = threading.Event()
        self.speaks.set()

    def __getattr__(self, name: str) -> Any:
        if not self.speaks.is_set():
            self.asked.set()
            self.speaks.wait(TIMEOUT)
        return getattr(self._store, name)


def admit_all(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
    pass


def join(seat: DynamicRendezvous, name: str, listener: RecordingListener | None = None) -> MemberRecord:
    record = MemberRecord(name=name, address=f"tcp://{name}:1")
    return seat.join(record, admit=admit_all, listener=listener or RecordingListener(), timeout=TIMEOUT)


def test_who_looks_knows_without_waiting(connect: Connect) -> None:
    one, two = (DynamicRendezvous(StoreClient(connect()), NEVER) for _ in range(2))
    listener = RecordingListener()
    join(one, "w0", listener)
    join(two, "w1")
    assert listener.story() == ["+w0:joining"]
    one.refresh()
    assert listener.story() == ["+w0:joining", "+w1:joining"]
    two.leave(TIMEOUT)
    one.refresh()
    assert listener.story("w1") == ["+w1:joining", "+w1:leaving", "-w1:leaving"]
    one.close()


def test_a_store_that_does_not_answer_keeps_nobody_from_leaving(connect: Connect) -> None:
    store = SilentStore(connect())
    seat = DynamicRendezvous(StoreClient(store), NEVER)
    join(seat, "w0")
    store.speaks.clear()
    looking = threading.Thread(target=seat.refresh)
    looking.start()
    assert store.asked.wait(TIMEOUT)
    seat.leave(0.01)
    seat.close()
    assert looking.is_alive()
    store.speaks.set()
    looking.join(TIMEOUT)


def test_a_farewell_is_heard_in_time_too(connect: Connect) -> None:
    one = DynamicRendezvous(StoreClient(connect()), 0.01)
    two = DynamicRendezvous(StoreClient(connect()), NEVER)
    listener = RecordingListener()
    join(one, "w0", listener)
    join(two, "w1")
    two.leave(TIMEOUT)
    listener.wait(lambda me: me.gone("w1"))
    one.close()


def test_later_ones_have_larger_incarnations_than_all_before(connect: Connect) -> None:
    seat = DynamicRendezvous(StoreClient(connect()), NEVER)
    incarnations = []
    for _ in range(3):
        incarnations.append(join(seat, "w0").incarnation)
        seat.leave(TIMEOUT)
    assert incarnations == sorted(set(incarnations))


def test_who_does_not_fit_can_be_told_from_who_left(connect: Connect) -> None:
    seat = DynamicRendezvous(StoreClient(connect()), NEVER)

    def refuse(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
        raise JoinError("no room")

    with pytest.raises(JoinError, match="no room"):
        seat.join(MemberRecord(name="w0"), admit=refuse, listener=RecordingListener(), timeout=TIMEOUT)
    assert seat.view().members == {}
    seat.close()


def test_the_token_tells_two_of_one_name_apart(connect: Connect) -> None:
    one, two = (DynamicRendezvous(StoreClient(connect()), NEVER) for _ in range(2))
    mine = join(one, "w0")
    two.suspect(replace(mine, incarnation=99))
    assert two.view().members == {"w0": mine}
    one.close()
    two.close()


def test_a_store_that_ends_is_told_once_and_leaving_works(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(connect())
    seat = DynamicRendezvous(StoreClient(store), 0.01)  # type: ignore[arg-type]
    mine = join(seat, "w0")
    with caplog.at_level(logging.WARNING, "rpcgroup"):
        store.fails = True
        watch = seat._watch
        assert watch is not None
        watch._thread.join(TIMEOUT)
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        "who joins and leaves from now on is not heard of any more"
    ]
    assert seat.view().members == {"w0": mine}, "what was known"
    with pytest.raises(RendezvousUnavailableError):
        seat.refresh()
    seat.leave(TIMEOUT)
    seat.close()
