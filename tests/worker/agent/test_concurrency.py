"""One test for each race that a review of the agent's threads has found."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rpcgroup.agent import callee_functions
from rpcgroup.agent.agent import Agent
from rpcgroup.agent.pool import BASE_THREADS
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.testing.cluster import LocalCluster

PATIENCE = 30.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster("ab", transport="tcp") as cluster:
        yield cluster


@pytest.fixture
def a(cluster: LocalCluster) -> Agent:
    return cluster.agent("a")


def add(x: int, y: int) -> int:
    return x + y


answer_now = threading.Event()


def wait_for_answer_now() -> None:
    assert answer_now.wait(PATIENCE)


def test_a_definition_that_loads_slowly_is_not_overtaken_by_its_call(
    a: Agent, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = callee_functions.load_function
    takeovers = cluster.agent("b").reactor.takeovers

    def load_after_a_takeover(description: bytes) -> Any:
        deadline = time.monotonic() + PATIENCE
        while cluster.agent("b").reactor.takeovers == takeovers and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        return load(description)

    monkeypatch.setattr(callee_functions, "load_function", load_after_a_takeover)
    assert a.rpc_sync("b", add, (1, 2)) == 3


def test_collect_all_sees_a_future_that_was_waited_for_and_let_go(a: Agent) -> None:
    future = a.rpc_async("b", add, (1, 2))
    collected = torch.futures.collect_all([future])
    assert future.wait() == 3
    del future
    assert [f.value() for f in wait_in_cpp(collected)] == [3]


def wait_in_cpp(future: torch.futures.Future[Any]) -> Any:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(PATIENCE)
    return future.value()


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_a_keyboard_interrupt_in_a_write_or_in_a_wait_leaves_the_link_usable(
    a: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a.rpc_sync("b", add, (1, 2)) == 3
    (link,) = a.connections.links
    stream = link.channel.stream
    send = stream.send

    def send_a_part(data: Any) -> int:
        if len(data) <= 5:
            raise KeyboardInterrupt
        return send(bytes(data)[: len(data) - 5])

    stream.send = send_a_part  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        a.rpc_sync("b", add, (1, 2))
    assert a.rpc_sync("b", add, (3, 4), timeout=PATIENCE) == 7

    def interrupted(into: memoryview) -> int:
        raise KeyboardInterrupt

    link.channel.stream.receive = interrupted  # type: ignore[method-assign]
    answer_now.clear()
    with pytest.raises(KeyboardInterrupt):
        a.rpc_sync("b", wait_for_answer_now)  # an answer that is here could be read by the reactor first
    answer_now.set()
    assert a.rpc_sync("b", add, (7, 8), timeout=PATIENCE) == 15
    await_that(lambda: not link.pending)


def test_a_second_handshake_of_a_channel_waits_for_the_first(a: Agent, cluster: LocalCluster) -> None:
    a.rpc_sync("b", add, (1, 2))
    (session,) = cluster.agent("b").connections.sessions()
    received = session.hold()
    second: list[int] = []
    other = threading.Thread(target=lambda: second.append(session.hold()))
    other.start()
    other.join(0.05)
    assert not second
    session.let_go()
    other.join(PATIENCE)
    assert second == [received]
    session.let_go()
    assert a.rpc_sync("b", add, (3, 4), timeout=PATIENCE) == 7


def test_a_session_whose_first_handshake_fails_is_forgotten(a: Agent, cluster: LocalCluster) -> None:
    b = cluster.agent("b")
    session = b.connections.new_session(a.identity, "channel")
    assert session.hold() == 0
    session.let_go()
    assert b.connections.sessions() == []
    with pytest.raises(ConnectionResetError):
        session.hold()


def test_a_job_that_finds_the_free_thread_taken_is_run(a: Agent) -> None:
    """Two jobs at once where one thread is free: the second wakes the monitor, though it did not find all busy."""
    gate, started, ran = threading.Event(), threading.Semaphore(0), threading.Event()

    def block() -> None:
        started.release()
        gate.wait(PATIENCE)

    try:
        for _ in range(BASE_THREADS - 1):
            a.pool.submit(block)
        for _ in range(BASE_THREADS - 1):
            assert started.acquire(timeout=PATIENCE)
        a.pool.submit(lambda: None)
        await_that(lambda: a.monitor.cold and not a.pool.waiting)
        a.pool.submit(block)
        a.pool.submit(ran.set)
        assert ran.wait(PATIENCE)
    finally:
        gate.set()


def test_a_job_that_exits_its_thread_does_not_count_as_busy_for_ever(a: Agent) -> None:
    a.pool.submit(lambda: sys.exit(1))
    await_that(lambda: a.pool.done >= 1)
    assert not a.pool.saturated


def test_the_monitor_goes_on_after_a_failure(a: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise ZeroDivisionError

    monkeypatch.setattr(a.monitor, "_run_timers", fail)
    a.monitor.wake()
    assert failed.wait(PATIENCE)
    monkeypatch.undo()
    done = threading.Event()
    a.monitor.call_soon(done.set)
    assert done.wait(PATIENCE)


def test_a_reactor_that_fails_between_runs_goes_on(
    a: Agent, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a.rpc_sync("b", add, (1, 2)) == 3
    reactor = cluster.agent("b").reactor
    serve, failures = reactor._serve, iter([1])

    def fail_once(*args: Any) -> bool:
        if next(failures, None):
            raise MemoryError
        return serve(*args)

    monkeypatch.setattr(reactor, "_serve", fail_once)
    assert a.rpc_sync("b", add, (3, 4), timeout=PATIENCE) == 7


def test_nobody_leads_instead_where_no_thread_can_be_started(
    a: Agent, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a.rpc_sync("b", add, (1, 2)) == 3
    reactor = cluster.agent("b").reactor
    monkeypatch.setattr(reactor, "_new_standby", lambda: None)
    assert a.rpc_sync("b", time.sleep, (0.05,), timeout=PATIENCE) is None
    assert a.rpc_sync("b", add, (3, 4), timeout=PATIENCE) == 7


def test_a_member_that_leaves_while_it_is_being_connected_to_keeps_no_link(
    a: Agent, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = a.peer("b")
    connect = peer._connect

    def connect_as_it_leaves() -> Any:
        link = connect()
        peer.gone = "has left the group"
        peer.leave()  # it sees no link yet
        return link

    monkeypatch.setattr(peer, "_connect", connect_as_it_leaves)
    with pytest.raises(PeerUnreachableError, match="has left"):
        peer.link()
    assert a.connections.links == ()


def test_closing_in_a_forked_child_does_not_wake_the_parent(a: Agent) -> None:
    child = os.fork()
    if not child:
        try:
            a.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert select.select([a.reactor._wake_read], [], [], 0)[0] == []
    assert a.rpc_sync("b", add, (1, 2)) == 3
