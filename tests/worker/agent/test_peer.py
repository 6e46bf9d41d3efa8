"""A peer that is a process of its own, over TCP: it is killed, stopped, and comes back."""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.errors import PeerUnreachableError, RRefError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.transport.tcp import TcpTransport

PATIENCE = 60.0
SECRET = b"shared by both processes"

NURSERY = textwrap.dedent(
    """
    import json, os, signal, sys, time
    from rpcgroup.agent.agent import Agent
    from rpcgroup.membership.record import MemberRecord
    from rpcgroup.transport.tcp import TcpTransport

    def serve(incarnation, parent, secret, nursery):
        agent = Agent(name="b", group="g", secret=secret.encode(), transport=TcpTransport(), host="127.0.0.1")
        record = MemberRecord(name="b", id=2, incarnation=incarnation, address=agent.address)
        agent.start(record)
        agent.add_member(record)
        agent.add_member(MemberRecord(name="a", id=1, incarnation=11, address=parent))
        print(json.dumps([agent.address, os.getpid()]), flush=True)
        while os.getppid() == nursery:
            time.sleep(0.2)
        os._exit(0)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(*json.loads(line), os.getppid())
    """
)


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that forks the workers: each would need seconds to import torch."""
    command = [sys.executable, "-c", NURSERY]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate(timeout=PATIENCE)


class Child:
    """The worker `b` in another process."""

    def __init__(self, nursery: subprocess.Popen[str], parent: Agent, incarnation: int = 22) -> None:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write(json.dumps([incarnation, parent.address, SECRET.decode()]) + "\n")
        nursery.stdin.flush()
        address, self.pid = json.loads(nursery.stdout.readline())
        self.record = MemberRecord(name="b", id=2, incarnation=incarnation, address=address)
        parent.add_member(self.record)

    def signal(self, number: int) -> bool:
        """False where it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        until(lambda: not self.signal(0))


@pytest.fixture
def a() -> Iterator[Agent]:
    options = AgentOptions(suspicion=0.5, silence=0.5, connect_timeout=0.2)
    agent = Agent(
        name="a", group="g", secret=SECRET, transport=TcpTransport(), host="127.0.0.1", options=options
    )
    record = MemberRecord(name="a", id=1, incarnation=11, address=agent.address)
    agent.start(record)
    agent.add_member(record)
    yield agent
    agent.close()


@pytest.fixture
def b(nursery: subprocess.Popen[str], a: Agent) -> Iterator[Child]:
    child = Child(nursery, a)
    yield child
    child.kill()


def test_calls_between_processes(a: Agent, b: Child) -> None:
    assert a.rpc_sync("b", os.getpid) == b.pid
    assert a.rpc_sync("b", lambda x: x * 2, (21,)) == 42
    assert a.remote("b", operator.add, (1, 2)).to_here() == 3


def test_a_peer_that_is_slow_to_answer_the_first_handshake(a: Agent, b: Child) -> None:
    """Its host accepts the connection; the process lets no thread run that could answer."""
    b.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as caller:
        called = caller.submit(a.rpc_sync, "b", os.getpid)
        with pytest.raises(futures.TimeoutError):
            called.result(timeout=2 * a.options.connect_timeout)
        b.signal(signal.SIGCONT)
        assert called.result(PATIENCE) == b.pid


@pytest.mark.parametrize("how", ["sync", "async", "callback", "remote", "many"])
def test_a_peer_that_is_killed_fails_its_pending_and_new_calls(a: Agent, b: Child, how: str) -> None:
    a.rpc_sync("b", os.getpid)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            a.rpc_sync("b", time.sleep, (PATIENCE,), timeout=0)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=wait) for _ in range({"sync": 1, "many": 8}.get(how, 0))]
    for thread in threads:
        thread.start()
    futures = []
    if how in ("async", "callback", "many"):
        futures = [a.rpc_async("b", time.sleep, (PATIENCE,), timeout=0) for _ in range(5)]
    called_back = threading.Semaphore(0)
    if how == "callback":
        for future in futures:
            future.add_done_callback(lambda done: called_back.release())
    reference = a.remote("b", time.sleep, (PATIENCE,)) if how == "remote" else None
    expected = len(threads) + len(futures)
    until(lambda: a.stats()["pending"] >= expected)

    b.kill()

    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if how == "callback":
        for _ in futures:
            assert called_back.acquire(timeout=PATIENCE)
    for future in futures:
        with pytest.raises(PeerUnreachableError) as raised:
            future.wait()
        errors.append(raised.value)
    if reference is not None:
        with pytest.raises(
            (PeerUnreachableError, RRefError), match=f"b at {b.record.address} (was lost|cannot be reached)"
        ):
            reference.to_here()
    assert len(errors) == expected
    for error in errors:
        assert isinstance(error, PeerUnreachableError)
        assert str(error).startswith(f"b at {b.record.address} was lost")
    with pytest.raises(
        PeerUnreachableError, match=rf"b at {b.record.address} (was lost|cannot be reached): .*no process"
    ):
        a.rpc_sync("b", os.getpid)
    assert a.rpc_sync("a", operator.add, (1, 2)) == 3


def test_the_agent_says_whom_it_lost(a: Agent, b: Child) -> None:
    lost: list[tuple[str, int]] = []
    a.on_unreachable = lambda name, incarnation: lost.append((name, incarnation))
    a.rpc_sync("b", os.getpid)
    b.kill()
    until(lambda: lost)
    assert lost[0] == ("b", 22)


def test_a_survivor_closes_at_once(a: Agent, b: Child) -> None:
    future = a.rpc_async("b", time.sleep, (PATIENCE,), timeout=0)
    b.kill()
    a.close()
    with pytest.raises(PeerUnreachableError):
        future.wait()


def test_a_peer_that_is_only_busy_is_not_given_up(a: Agent, b: Child) -> None:
    """Stopped for longer than the silence allowed: its kernel still answers."""
    a.rpc_sync("b", os.getpid)
    future = a.rpc_async("b", operator.add, (1, 2))
    b.signal(signal.SIGSTOP)
    second = a.rpc_async("b", operator.add, (3, 4))
    threading.Event().wait(3 * a.options.silence)
    assert not second.done() or second.wait() == 7
    b.signal(signal.SIGCONT)
    assert (future.wait(), second.wait()) == (3, 7)


def test_a_peer_that_comes_back_under_its_name(nursery: subprocess.Popen[str], a: Agent, b: Child) -> None:
    first = a.rpc_sync("b", os.getpid)
    b.kill()
    again = Child(nursery, a, incarnation=23)
    assert a.rpc_sync("b", os.getpid) == again.pid != first
    a.remove_member(b.record, "late news of its earlier life")
    assert a.rpc_sync("b", os.getpid) == again.pid
    a.remove_member(again.record, "has died")
    with pytest.raises(PeerUnreachableError):
        a.rpc_sync("b", os.getpid)
    again.kill()


def test_another_process_at_the_address_of_a_dead_peer_is_not_taken_for_it(a: Agent, b: Child) -> None:
    a.add_member(replace(b.record, name="c", id=3, incarnation=33))
    with pytest.raises(PeerUnreachableError, match="it wants 'c' of incarnation 33, this is 'b'"):
        a.rpc_sync("c", os.getpid)


def test_the_death_of_a_parent_is_seen_while_its_children_live(a: Agent, b: Child) -> None:
    """A forked child inherits the connections; it must not keep them open."""
    assert a.rpc_sync("b", os.getpid) == b.pid
    orphan = a.rpc_sync("b", lambda: os.fork() or time.sleep(2 * PATIENCE) or os._exit(0))
    future = a.rpc_async("b", time.sleep, (PATIENCE,), timeout=0)
    b.kill()
    try:
        with pytest.raises(PeerUnreachableError):
            future.wait()
        with pytest.raises(PeerUnreachableError, match="no process"):
            a.rpc_sync("b", os.getpid)
    finally:
        os.kill(orphan, signal.SIGKILL)


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)
