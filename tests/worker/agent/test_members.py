from __future__ import annotations

from collections.abc import Iterator

import pytest

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.members import DEPARTED_KEPT, Members, Target
from rpcgroup.agent.peer import Peer
from rpcgroup.errors import DrainedError, PeerUnreachableError, UnknownWorkerError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.worker_info import WorkerInfo


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent(name="me", group="g", secret=b"s", transport=MemoryTransport(), host="me")
    yield agent
    agent.close()


@pytest.fixture
def members() -> Members:
    return Members("g")


def record(name: str, incarnation: int, id: int = 0, called: str = "") -> MemberRecord:
    return MemberRecord(name=name, incarnation=incarnation, id=id or incarnation, known_as=called)


def test_a_member_is_found_by_all_it_is_called(agent: Agent, members: Members) -> None:
    peer = Peer(agent, record("pod-3", 7, id=3, called="trainer"))
    members.add(peer)
    ways: list[Target] = ["pod-3", "trainer", 3, WorkerInfo("trainer", 3), peer.record]
    assert [members.get(way) for way in ways] == [peer] * 5
    assert members.of_incarnation(7) is peer
    assert members.all() == [peer], "once, whatever the number of its names"


def test_of_one_name_the_latest_counts(agent: Agent, members: Members) -> None:
    old, new = (Peer(agent, record("b", incarnation, id=2)) for incarnation in (7, 8))
    members.add(old)
    members.add(new)
    assert members.get("b") is members.get(2) is new
    assert members.remove(old.record, "was replaced", in_order=False) is old
    assert members.get("b") is members.get(2) is new
    assert members.of_incarnation(7) is None
    assert members.newest_incarnation == 8


def test_who_is_removed_twice_is_removed_once(agent: Agent, members: Members) -> None:
    peer = Peer(agent, record("b", 7))
    members.add(peer)
    assert members.remove(peer.record, "left", in_order=True) is peer
    assert members.remove(peer.record, "died", in_order=False) is None
    with pytest.raises(DrainedError, match=r"b left, 0\.0 s ago, and is no member now"):
        raise members.missing("b")


def test_a_call_of_one_that_died_is_told_so_until_there_is_another(agent: Agent, members: Members) -> None:
    peer = Peer(agent, record("b", 7, id=2))
    members.add(peer)
    members.remove(peer.record, "was killed", in_order=False)
    for way in ("b", 2):
        with pytest.raises(PeerUnreachableError, match=r"b was killed, 0\.0 s ago"):
            raise members.missing(way)
    again = Peer(agent, record("b", 9, id=2))
    members.add(again)
    members.remove(again.record, "left", in_order=True)
    with pytest.raises(DrainedError):
        raise members.missing(2)


def test_an_unknown_name_is_answered_with_some_that_are_there(agent: Agent, members: Members) -> None:
    with pytest.raises(UnknownWorkerError, match=r"no worker 'x' in group g; there are: none"):
        raise members.missing("x")
    for n in range(12):
        members.add(Peer(agent, record(f"w{n:02}", n + 1)))
    with pytest.raises(UnknownWorkerError, match=r"there are: w00, .*, w09, \.\.\.$"):
        raise members.missing("x")


def test_of_former_members_so_many_are_kept(agent: Agent, members: Members) -> None:
    for n in range(1, DEPARTED_KEPT + 2):
        members.add(Peer(agent, record(f"w{n}", n)))
        members.remove(record(f"w{n}", n), "left", in_order=True)
    assert isinstance(members.missing("w1"), UnknownWorkerError)
    assert isinstance(members.missing(f"w{DEPARTED_KEPT + 1}"), DrainedError)
