from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from rpcgroup.agent.agent import Agent
from rpcgroup.changes import Changes
from rpcgroup.errors import (
    DeviceMapError,
    DrainedError,
    GroupError,
    JoinError,
    MemberExistsError,
    NotInitializedError,
    PeerUnreachableError,
    RendezvousUnavailableError,
    UnknownWorkerError,
)
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.group import Group
from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup.membership.store.client import StoreClient
from rpcgroup.membership.store.dynamic import DynamicRendezvous
from rpcgroup.membership.store.static import StaticRendezvous
from rpcgroup.membership.tracker import Change, ChangeKind
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.faults import FaultyTransport
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.transport.tcp import TcpTransport

PATIENCE = 30.0

IN_TIME = 10.0
"""Seconds; less than a connection is held."""

gates: dict[str, Future[Any]] = {}
relays: dict[str, Agent] = {}
runs: list[Any] = []


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    gates.clear()
    runs.clear()
    with LocalCluster("abc") as cluster:
        yield cluster


def echo(x: Any = None) -> Any:
    return x


def note(x: Any) -> Any:
    runs.append(x)
    return x


@async_execution
def when_opened(gate: str) -> Future[Any]:
    runs.append(gate)
    return gates[gate]


def relay(by: str, to: str, x: torch.Tensor) -> torch.Tensor:
    """Called at the worker `by`, which calls `to`."""
    result: torch.Tensor = relays[by].rpc_sync(to, torch.mul, (x, 2))
    return result


def names(group: Group) -> list[str]:
    return [member.name for member in group.members()]


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def new_group(name: str, rendezvous: MemoryRendezvous, transport: Any = None) -> Group:
    agent = Agent(name=name, group="g", secret=b"s", transport=transport or MemoryTransport(), host=name)
    return Group(agent, rendezvous, 3600.0)


# Who is here.


def test_everybody_sees_everybody_by_id(cluster: LocalCluster) -> None:
    for name in cluster:
        group = cluster[name]
        assert group.name == name
        assert names(group) == ["a", "b", "c"]
        assert [m.id for m in group.members()] == sorted(m.id for m in group.members())
        assert group.me in group.members()
        assert group.members(role="worker") == group.members()
        assert group.members(role="server") == []


def test_the_epoch_grows_with_every_change(cluster: LocalCluster) -> None:
    before = cluster["a"].epoch
    cluster.join("d")
    joined = cluster["a"].epoch
    assert joined > before
    cluster.leave("d")
    until(lambda: cluster["a"].epoch > joined)


def test_wait_for(cluster: LocalCluster) -> None:
    found: list[Any] = []
    thread = in_thread(lambda: found.extend(cluster["a"].wait_for(1, role="server", timeout=PATIENCE)))
    cluster.join("s", role="server")
    thread.join(PATIENCE)
    assert [member.name for member in found] == ["s"]
    with pytest.raises(GroupError, match="4 members are here, 9 were waited for"):
        cluster["a"].wait_for(9, timeout=0.01)
    with pytest.raises(GroupError, match="0 members of role 'nobody' are here"):
        cluster["a"].wait_for(1, role="nobody", timeout=0.01)


def test_waiting_ends_when_this_worker_leaves(cluster: LocalCluster) -> None:
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            cluster_group.wait_for(9, timeout=PATIENCE)
        except GroupError as exc:
            errors.append(exc)

    cluster_group = cluster["a"]
    thread = in_thread(wait)
    cluster.leave("a")
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert errors


def test_values_are_shared(cluster: LocalCluster) -> None:
    cluster["a"].kv.put("key", b"value")
    assert cluster["b"].kv.get("key") == b"value"


# Joining.


def test_a_second_worker_of_a_name_is_refused_and_leaves_nothing(cluster: LocalCluster) -> None:
    before = set(threading.enumerate())
    with pytest.raises(MemberExistsError, match="cannot join as 'a'"):
        cluster.join("a")
    assert names(cluster["b"]) == ["a", "b", "c"]
    until(lambda: set(threading.enumerate()) <= before)
    assert cluster.agent("b").rpc_sync("a", echo, (1,)) == 1


def test_a_rank_that_is_taken_is_refused_with_the_reason(cluster: LocalCluster) -> None:
    cluster.join("d", rank=40)
    with pytest.raises(JoinError, match="e cannot join with rank 40: d has it already"):
        cluster.join("e", rank=40)
    until(lambda: names(cluster["a"]) == ["a", "b", "c", "d"])


def mapped(name: str, place: MemoryGroup, transport: Any, devices: Any = (), **maps: dict[str, str]) -> Group:
    """A member with two devices."""
    group = new_group(name, MemoryRendezvous(place), transport)
    group.join(
        MemberRecord(
            name=name,
            address=group.agent.address,
            devices=tuple(devices),
            device_count=2,
            device_maps=maps,
            state=MemberState.READY,
        )
    )
    group.serve()
    return group


def test_the_reverse_maps_follow_who_is_here() -> None:
    place, transport = MemoryGroup(), MemoryTransport()
    cuda0, cuda1 = torch.device("cuda:0"), torch.device("cuda:1")
    with ExitStack() as leaving:
        a = mapped("a", place, transport, b={"cuda:0": "cuda:1"})
        leaving.callback(a.leave, False)
        assert (a.devices, a.reverse_device_maps) == ([cuda0], {})
        b = mapped("b", place, transport, a={"cuda:0": "cuda:1"})
        leaving.callback(b.leave, False)
        until(lambda: a.reverse_device_maps == {"b": {cuda1: cuda0}})
        assert a.devices == [cuda0, cuda1]
        assert b.reverse_device_maps == {"a": {cuda1: cuda0}}
        b.leave(graceful=False)
        until(lambda: a.reverse_device_maps == {})


def test_who_does_not_fit_by_its_maps_does_not_join() -> None:
    place, transport = MemoryGroup(), MemoryTransport()
    with ExitStack() as leaving:
        a = mapped("a", place, transport, b={"cuda:0": "cuda:1"}, devices=["cuda:0"])
        leaving.callback(a.leave, False)
        with pytest.raises(
            DeviceMapError, match="Node a has unexpected target devices in its device map for b"
        ):
            mapped("b", place, transport, devices=["cuda:0"])
        with pytest.raises(DeviceMapError, match="Node b has target devices with invalid indices"):
            mapped("b", place, transport, c={"cuda:0": "cuda:0"}, b={"cuda:0": "cuda:2"})
        leaving.callback(mapped("b", place, transport, devices=["cuda:1"]).leave, False)
        assert names(a) == ["a", "b"]


def test_a_rendezvous_that_is_away_leaves_nothing() -> None:
    place = MemoryGroup()
    with place.outage():
        group = new_group("a", MemoryRendezvous(place))
        with pytest.raises(RendezvousUnavailableError):
            group.join(MemberRecord(name="a", address=group.agent.address), timeout=0.05)
    with pytest.raises(NotInitializedError, match="has not joined"):
        group.me  # noqa: B018


def test_many_join_at_once() -> None:
    with LocalCluster("a") as cluster:
        errors: list[BaseException] = []

        def join(name: str) -> None:
            try:
                cluster.join(name)
            except BaseException as exc:
                errors.append(exc)

        threads = [threading.Thread(target=join, args=(f"w{n}",)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not errors
        until(lambda: all(len(cluster[name].members()) == 11 for name in cluster))
        assert cluster.agent("w3").rpc_sync("w7", echo, (1,)) == 1


# Leaving.


def test_a_graceful_leave_ends_what_is_under_way_both_ways(cluster: LocalCluster) -> None:
    gates.update(mine=Future(), others=Future())
    a, b = cluster.agent("a"), cluster.agent("b")
    mine = a.rpc_async("b", when_opened, ("mine",))
    others = b.rpc_async("a", when_opened, ("others",))
    until(lambda: len(runs) == 2)
    leaving = in_thread(lambda: cluster.leave("a"))
    until(lambda: cluster["b"].members()[0].state is MemberState.DRAINING)
    assert leaving.is_alive()
    gates["mine"].set_result(1)
    assert mine.wait() == 1
    gates["others"].set_result(2)
    assert others.wait() == 2
    leaving.join(PATIENCE)
    assert not leaving.is_alive()
    until(lambda: names(cluster["b"]) == ["b", "c"])


def test_no_call_is_lost_or_run_twice_while_a_worker_leaves(cluster: LocalCluster) -> None:
    """Each call gives its value, or says that it was not run; the caller tries another."""
    outcome: dict[int, str] = {}
    stop = threading.Event()

    def calls(seed: int) -> None:
        n = seed
        while not stop.is_set():
            n += 10
            try:
                cluster.agent("b").rpc_sync("a", note, (n,))
                outcome[n] = "ran"
            except (DrainedError, UnknownWorkerError):
                outcome[n] = "refused"
                return
            except PeerUnreachableError:
                outcome[n] = "unknown"
                return

    threads = [in_thread(lambda n=n: calls(n)) for n in range(4)]  # type: ignore[misc]
    until(lambda: len(runs) > 50)
    cluster.leave("a")
    for thread in threads:
        thread.join(PATIENCE)
    stop.set()
    assert len(runs) == len(set(runs))
    assert {n for n, how in outcome.items() if how == "ran"} <= set(runs)
    assert not {n for n, how in outcome.items() if how == "refused"} & set(runs)
    assert "unknown" not in outcome.values()


def test_leaving_in_a_given_time(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    future = cluster.agent("b").rpc_async("a", when_opened, ("g",))
    until(lambda: runs)
    cluster["a"].leave(graceful=True, timeout=0.1)
    with pytest.raises((PeerUnreachableError, DrainedError)):
        future.wait()
    gates["g"].set_result(1)


def test_leaving_at_once(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    mine = cluster.agent("a").rpc_async("b", when_opened, ("g",))
    until(lambda: runs)
    cluster["a"].leave(graceful=False)
    with pytest.raises(PeerUnreachableError):
        mine.wait()
    cluster["a"].leave(graceful=False)
    cluster["a"].leave(graceful=True)
    until(lambda: names(cluster["b"]) == ["b", "c"])
    with pytest.raises(NotInitializedError):
        cluster.agent("a").rpc_sync("b", echo)
    gates["g"].set_result(1)


def test_all_leave_at_once(cluster: LocalCluster) -> None:
    for here in "abc":
        for there in "abc":
            cluster.agent(here).rpc_sync(there, echo)
    groups = [cluster[name] for name in "abc"]
    threads = [in_thread(lambda group=group: group.leave(graceful=True)) for group in groups]  # type: ignore[misc]
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_dead_member_does_not_keep_the_others(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    future = cluster.agent("a").rpc_async("b", when_opened, ("g",))
    until(lambda: runs)
    cluster.evict("b")
    cluster.leave("a")
    cluster.leave("c")
    with pytest.raises(PeerUnreachableError):
        future.wait()
    gates["g"].set_result(1)


def test_leaving_during_an_outage_of_the_rendezvous(cluster: LocalCluster) -> None:
    with cluster.rendezvous.outage():
        cluster.leave("a")
        assert cluster.agent("b").rpc_sync("c", echo, (1,)) == 1, "calls go on"


# Death and outages.


def test_an_evicted_member_is_dead_for_all(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    future = cluster.agent("a").rpc_async("c", when_opened, ("g",))
    until(lambda: runs)
    changes = cluster["a"].changes()
    cluster.evict("c")
    change = changes.get(PATIENCE)
    assert change is not None
    assert (change.kind, change.member.name) == (ChangeKind.DIED, "c")
    with pytest.raises(PeerUnreachableError, match="c"):
        future.wait()
    with pytest.raises((PeerUnreachableError, DrainedError)):  # it may have had time for a goodbye
        cluster.agent("a").rpc_sync("c", echo)
    until(lambda: names(cluster["a"]) == names(cluster["b"]) == ["a", "b"])
    gates["g"].set_result(1)
    changes.close()


def test_a_lost_lease_is_not_a_death(cluster: LocalCluster) -> None:
    """The record goes and comes back: the worker lives, and nobody loses a call."""
    changes = cluster["a"].changes()
    incarnation = cluster["c"].me.incarnation
    for _ in range(3):
        cluster.rendezvous.expire("c")
        assert cluster.agent("a").rpc_sync("c", echo, (1,)) == 1
    assert names(cluster["a"]) == ["a", "b", "c"]
    assert cluster["a"].members()[2].incarnation == incarnation
    assert changes.get(0.05) is None
    changes.close()


def test_a_member_whose_record_is_gone_and_that_cannot_be_reached_is_dead() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network) as cluster:
        changes = cluster["a"].changes()
        network.refuse(cluster.address("b"))
        with cluster.rendezvous.changed:
            cluster.rendezvous.remove("b")
        change = changes.get(PATIENCE)
        assert change is not None
        assert (change.kind, change.member.name) == (ChangeKind.DIED, "b")
        changes.close()


def test_a_member_that_cannot_be_reached_and_is_registered_stays_a_member() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network) as cluster:
        group = cluster["a"]
        assert group.agent.rpc_sync("b", echo, (1,)) == 1
        assert not group.is_unreachable("b")
        network.silence(cluster.address("b"))
        network.sever(cluster.address("b"))
        until(lambda: group.is_unreachable("b"))
        assert names(group) == ["a", "b"]
        network.restore(cluster.address("b"))
        assert group.agent.rpc_sync("b", echo, (1,)) == 1
        assert not group.is_unreachable("b")


def test_a_member_whose_process_has_ended_is_dead_for_all_at_once(cluster: LocalCluster) -> None:
    """Its lease goes on, and nobody has seen its process end; one connection to its port is enough."""
    changes = cluster["b"].changes()
    cluster.crash("c")
    with pytest.raises((PeerUnreachableError, DrainedError)):
        cluster.agent("a").rpc_sync("c", echo)
    change = changes.get(PATIENCE)
    assert change is not None
    assert (change.kind, change.member.name) == (ChangeKind.DIED, "c")
    until(lambda: names(cluster["a"]) == ["a", "b"])
    changes.close()


def test_a_worker_that_only_looks_dead_is_a_member_again_and_then_left_in_peace() -> None:
    network = FaultyTransport(MemoryTransport())
    with LocalCluster("ab", transport=network) as cluster:
        incarnation, before = cluster["b"].me.incarnation, cluster["a"].epoch

        def fail() -> None:
            with pytest.raises((PeerUnreachableError, UnknownWorkerError)):
                cluster.agent("a").rpc_sync("b", echo)

        network.refuse(cluster.address("b"))
        fail()
        gone_and_back = before + 2
        until(lambda: cluster["a"].epoch == gone_and_back)
        fail()
        fail()
        assert names(cluster["a"]) == ["a", "b"]
        assert cluster["a"].members()[1].incarnation == incarnation
        network.restore(cluster.address("b"))
        assert cluster.agent("a").rpc_sync("b", echo, (1,)) == 1
        assert cluster["a"].epoch == gone_and_back


def test_a_worker_that_comes_back_is_a_new_incarnation(cluster: LocalCluster) -> None:
    before = cluster["c"].me.incarnation
    assert cluster.agent("a").rpc_sync("c", echo, (1,)) == 1
    cluster.evict("c")
    cluster.join("c")
    until(lambda: cluster.agent("a").peer("c").incarnation > before)
    assert cluster.agent("a").rpc_sync("c", echo, (2,)) == 2


# Draining.


def test_a_drain_request_reaches_the_callbacks(cluster: LocalCluster) -> None:
    heard: list[tuple[str, str]] = []
    both = threading.Semaphore(0)

    def on_drain(request: DrainRequest) -> None:
        heard.append(("first", request.reason))
        both.release()

    def too(request: DrainRequest) -> None:
        heard.append(("second", request.reason))
        both.release()

    cluster["b"].on_drain(on_drain)
    cluster["b"].on_drain(too)
    changes = cluster["a"].changes()
    request = DrainRequest(time.time() + 60, "scaled down")
    MemoryRendezvous(cluster.rendezvous).request_drain("b", request)
    assert both.acquire(timeout=PATIENCE)
    assert both.acquire(timeout=PATIENCE)
    assert sorted(heard) == [("first", "scaled down"), ("second", "scaled down")]
    change = changes.get(PATIENCE)
    assert change is not None
    assert (change.kind, change.member.name) == (ChangeKind.DRAINING, "b")
    late = threading.Event()
    cluster["b"].on_drain(lambda request: late.set())
    assert late.wait(PATIENCE), "told at once where it has been asked already"
    changes.close()


def test_a_second_drain_request_is_not_told_again(cluster: LocalCluster) -> None:
    heard: list[str] = []
    cluster["b"].on_drain(lambda request: heard.append(request.reason))
    cluster["b"].drain(DrainRequest(time.time() + 60, "first"))
    cluster["b"].drain(DrainRequest(time.time() + 60, "second"))
    assert heard == ["first"]


def test_a_callback_that_fails_does_not_keep_the_others_from_hearing(cluster: LocalCluster) -> None:
    heard = threading.Event()

    def broken(request: DrainRequest) -> None:
        raise ValueError("in a callback")

    cluster["b"].on_drain(broken)
    cluster["b"].on_drain(lambda request: heard.set())
    MemoryRendezvous(cluster.rendezvous).request_drain("b", DrainRequest(time.time() + 60, "why"))
    assert heard.wait(PATIENCE)


def test_a_drain_that_nobody_listens_to(cluster: LocalCluster) -> None:
    unheard: list[DrainRequest] = []
    cluster["b"].when_drained_unheard = unheard.append
    request = DrainRequest(time.time() + 60, "why")
    cluster["b"].drain(request)
    assert unheard == [request]


def test_a_drained_worker_still_serves_until_it_leaves(cluster: LocalCluster) -> None:
    cluster["b"].on_drain(lambda request: None)
    cluster["b"].drain(DrainRequest(time.time() + 60, "why"))
    assert cluster.agent("a").rpc_sync("b", echo, (1,)) == 1
    cluster.leave("b")
    until(lambda: names(cluster["a"]) == ["a", "c"])


# What is shown.


def test_progress_is_published(cluster: LocalCluster) -> None:
    import json

    cluster["a"].progress(step=3, loss=0.5)
    cluster["a"].progress(step=4)
    place = MemoryRendezvous(cluster.rendezvous)
    group = cluster["a"]
    group._stats._publish()
    assert json.loads(place.stats()["a"])["progress"] == {"step": 4, "loss": 0.5}


# In what order it is told.


def test_who_is_told_of_a_member_can_rely_on_it(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent knows before anybody is told: a call then reaches who has come, and is told who has gone."""
    known: list[tuple[str, ChangeKind, bool]] = []
    agent = cluster.agent("a")

    def put(changes: Changes, change: Change) -> None:
        name, incarnation = change.member.name, change.member.incarnation
        is_known = agent.members.get(name) is not None
        assert is_known == (agent.members.of_incarnation(incarnation) is not None)
        known.append((name, change.kind, is_known))

    monkeypatch.setattr(Changes, "put", put)
    with cluster["a"].changes():
        assert agent.rpc_sync("c", echo, (1,)) == 1
        cluster.join("d")
        cluster.leave("d")
        cluster.evict("c")
        until(lambda: len(known) == 4)
    come_and_gone = [("d", ChangeKind.JOINED, True), ("d", ChangeKind.DRAINING, True)]
    assert known == [*come_and_gone, ("d", ChangeKind.LEFT, False), ("c", ChangeKind.DIED, False)]


def places() -> dict[str, Callable[[], Callable[[], Any]]]:
    """By kind: what makes a place, which gives seats at it."""

    def memory() -> Callable[[], Any]:
        return partial(MemoryRendezvous, MemoryGroup())

    def store() -> Callable[[], Any]:
        return partial(DynamicRendezvous, StoreClient(HashStore()), 0.02)

    return {"memory": memory, "store": store}


@pytest.mark.parametrize("kind", places())
def test_one_that_has_stopped_does_not_hold_up_the_news(kind: str) -> None:
    """That a worker has died is something to tell others; one of them does not read, and its socket is full."""
    new_seat = places()[kind]()
    network = FaultyTransport(MemoryTransport())
    with ExitStack() as leaving:
        groups: dict[str, Group] = {}
        seats = {name: new_seat() for name in "abcd"}

        def join(name: str) -> None:
            groups[name] = group = new_group(name, seats[name], network)
            group.join(MemberRecord(name=name, address=group.agent.address))
            group.serve()
            leaving.callback(group.leave, False)

        for name in "abc":
            join(name)
        for name in "abc":
            groups[name].wait_for(3, timeout=PATIENCE)
        a, b, c = (groups[name].agent for name in "abc")
        relays["a"] = a
        context = b.autograd.new_context()
        b.rpc_sync("a", relay, ("a", "c", torch.ones(2, requires_grad=True)))
        assert c.autograd.has(context.id), "so a tells c when b has died"
        changes = groups["a"].changes()
        network.hold(c.address)
        leaving.callback(network.restore, c.address)
        seats["b"].close()
        b.close()
        seats["d"].evict("b")
        assert changes.get(IN_TIME).member.name == "b"  # type: ignore[union-attr]
        until(lambda: not a.autograd.has(context.id))
        join("d")
        assert changes.get(IN_TIME).member.name == "d"  # type: ignore[union-attr]
        assert a.rpc_sync("d", echo, (1,)) == 1


# Static groups: three members in one process over TCP, whose connections end as those of processes do.
@pytest.fixture
def static() -> Iterator[list[Group]]:
    client = StoreClient(HashStore())
    groups = []
    for rank in range(3):
        agent = Agent(name=f"w{rank}", group="g", secret=b"s", transport=TcpTransport(), host="127.0.0.1")
        groups.append(Group(agent, StaticRendezvous(client, 3), 3600.0, 3))

    def join(rank: int) -> None:
        agent = groups[rank].agent
        groups[rank].join(MemberRecord(name=agent.name, id=rank, address=agent.address), PATIENCE)
        groups[rank].serve()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(join, range(3)))
    yield groups
    for group in groups:
        group.leave(graceful=False)


def end(group: Group) -> None:
    """As a process that is killed: its connections end without a goodbye."""
    agent = group.agent
    agent.closing = True
    channels = [end.channel for end in (*agent.connections.links, *agent.connections.sessions())]
    for channel in channels:
        channel.broken = True
    agent._doorway.close(PATIENCE)
    for channel in channels:
        channel.stream.shutdown()


def kinds(changes: Any, name: str) -> ChangeKind:
    while (change := changes.get(PATIENCE)) is not None:
        if change.member.name == name and change.kind in (ChangeKind.LEFT, ChangeKind.DIED):
            kind: ChangeKind = change.kind
            return kind
    raise AssertionError(f"{name} has not gone")


def test_a_static_group_ends_when_all_have_come_to_its_end(static: list[Group]) -> None:
    assert static[0].agent.rpc_sync("w1", echo, (1,)) == 1
    early = [in_thread(partial(static[rank].leave, graceful=True)) for rank in (0, 2)]
    assert static[1].agent.rpc_sync("w0", echo, (1,)) == 1
    assert static[1].agent.rpc_sync("w2", echo, (1,)) == 1
    assert names(static[1]) == static[1].roster == ["w0", "w1", "w2"]
    static[1].leave(graceful=True)
    for thread in early:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("caller", [0, 1], ids=["who calls it", "whom it calls"])
def test_one_that_leaves_early_is_not_taken_for_dead(static: list[Group], caller: int) -> None:
    changes = static[0].changes()
    assert static[caller].agent.rpc_sync(f"w{1 - caller}", echo, (1,)) == 1
    static[1].leave(graceful=False)
    assert kinds(changes, "w1") is ChangeKind.LEFT
    with pytest.raises(DrainedError, match=r"w1 has left the group, \d"):
        static[0].agent.rpc_sync("w1", echo, (1,))
    assert names(static[0]) == ["w0", "w2"]
    assert static[0].roster == ["w0", "w1", "w2"]
    changes.close()


@pytest.mark.parametrize("caller", [0, 1], ids=["who calls it", "whom it calls"])
def test_a_death_shows_to_those_that_were_connected(static: list[Group], caller: int) -> None:
    changes = static[0].changes()
    assert static[caller].agent.rpc_sync(f"w{1 - caller}", echo, (1,)) == 1
    end(static[1])
    assert kinds(changes, "w1") is ChangeKind.DIED
    with pytest.raises(PeerUnreachableError, match="w1 has died"):
        static[0].agent.rpc_sync("w1", echo, (1,))
    changes.close()


def test_nobody_waits_for_the_dead_and_who_lives_is_named(static: list[Group]) -> None:
    end(static[0])
    with pytest.raises(GroupError, match=r"1 of 3 members did not come within 0\.3 s: w2"):
        static[1].leave(graceful=True, timeout=0.3)
    static[1].leave(graceful=True)
    static[2].leave(graceful=True)


def test_a_static_group_needs_no_news_from_its_place(static: list[Group]) -> None:
    static[0].drain(DrainRequest(time.time() + 60, "why"))
    assert static[0].me.state is MemberState.JOINING, "its record stays as it is"
