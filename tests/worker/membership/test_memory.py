"""What a test can do to the memory rendezvous. What it does is in `test_rendezvous.py`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest

from rpcgroup.errors import RendezvousUnavailableError
from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup.testing.rendezvous import RecordingListener


def admit_all(mine: MemberRecord, earlier: Sequence[MemberRecord]) -> None:
    pass


def enter(seat: MemoryRendezvous, name: str) -> RecordingListener:
    listener = RecordingListener()
    seat.join(MemberRecord(name=name), admit=admit_all, listener=listener, timeout=5)
    return listener


def test_a_lease_that_ends_in_an_outage_shows_after_it_as_gone_and_back() -> None:
    group = MemoryGroup()
    with closing(MemoryRendezvous(group)) as one, closing(MemoryRendezvous(group)) as two:
        first, _ = enter(one, "w0"), enter(two, "w1")
        with group.outage():
            group.expire("w1")
            told = len(first.views)
        first.wait(lambda me: me.story("w1") == ["+w1:joining", "-w1:joining", "+w1:joining"])
        assert told <= 2


def test_what_a_dead_worker_left_does_not_come_back() -> None:
    group = MemoryGroup()
    with closing(MemoryRendezvous(group)) as one:
        dead = MemoryRendezvous(group)
        first, _ = enter(one, "w0"), enter(dead, "w1")
        dead.close()
        group.expire("w1")
        first.wait_for_names("w0")
        group.expire("nobody")


def test_a_drain_request_waits_for_the_end_of_an_outage() -> None:
    group = MemoryGroup()
    with closing(MemoryRendezvous(group)) as one, closing(MemoryRendezvous(group)) as two:
        listener = enter(one, "w0")
        with group.outage(), pytest.raises(RendezvousUnavailableError):
            two.request_drain("w0", DrainRequest(1.0, ""))
        two.request_drain("w0", DrainRequest(2.0, ""))
        listener.wait(lambda me: me.drains == [DrainRequest(2.0, "")])
