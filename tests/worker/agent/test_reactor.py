"""Who leads: hand-overs before blocking, take-overs of what lasts, and that no request is lost on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rpcgroup.agent import reactor as reactor_module
from rpcgroup.agent.agent import Agent
from rpcgroup.agent.reactor import Leadership
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.wire.frames import pack_frame

PATIENCE = 30.0

events: dict[str, threading.Event] = {}
threads_of_runs: list[str] = []


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    events.clear()
    threads_of_runs.clear()
    with LocalCluster("abc") as cluster:
        yield cluster
        for event in events.values():
            event.set()


@pytest.fixture
def a(cluster: LocalCluster) -> Agent:
    return cluster.agent("a")


def echo(x: Any = None) -> Any:
    return x


def where() -> str:
    return threading.current_thread().name


def wait_for(name: str) -> str:
    threads_of_runs.append(threading.current_thread().name)
    assert events[name].wait(PATIENCE)
    return name


def new_function() -> Any:
    """The callee has never seen it, so it does not know that it lasts."""
    name = f"wait_for_{len(globals())}"
    exec(f"def {name}(gate): return wait_for(gate)", globals())
    return globals()[name]


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


# A term.


def test_a_term_can_be_ended_only_while_its_leader_is_inside_and_once() -> None:
    term = Leadership(None)
    assert not term.end(), "its leader reads: it would lose what it reads"
    term.enter()
    assert term.runs & 1
    assert term.end()
    assert not term.end()
    assert not term.leave(), "and its leader learns it"


def test_a_term_that_nobody_ended_goes_on() -> None:
    term = Leadership(None)
    for _ in range(3):
        term.enter()
        assert term.leave()
    assert not term.runs & 1
    assert not term.end()


# In an agent.


def test_quick_functions_run_where_they_were_read(a: Agent) -> None:
    assert {a.rpc_sync("b", where) for _ in range(50)} <= {"rpcgroup-reactor-b", "rpcgroup-pool-b"}
    assert a.rpc_sync("b", where).startswith("rpcgroup-")


def test_a_function_that_lasts_is_taken_over_and_then_run_by_the_pool(
    cluster: LocalCluster, a: Agent
) -> None:
    b = cluster.agent("b")
    events["g"] = threading.Event()
    first = a.rpc_async("b", wait_for, ("g",))
    until(lambda: b.reactor.takeovers)
    second = a.rpc_async("b", wait_for, ("g",))
    until(lambda: len(threads_of_runs) == 2)
    assert threads_of_runs == ["rpcgroup-reactor-b", "rpcgroup-pool-b"]
    events["g"].set()
    assert first.wait() == second.wait() == "g"


def test_functions_that_block_at_the_same_time_are_each_taken_over(cluster: LocalCluster, a: Agent) -> None:
    """What counts the runs belongs to one term: two in one count would look like progress."""
    for n in range(8):
        events[str(n)] = threading.Event()
    first = [a.rpc_async("b", wait_for, (str(n),)) for n in range(4)]
    second = [cluster.agent("c").rpc_async("b", wait_for, (str(n),)) for n in range(4, 8)]
    until(lambda: len(threads_of_runs) == 8)
    assert a.rpc_sync("b", echo, (1,)) == 1
    for event in events.values():
        event.set()
    assert [future.wait() for future in first + second] == [str(n) for n in range(8)]


def test_calls_read_together_with_one_that_blocks_are_not_held_up(cluster: LocalCluster, a: Agent) -> None:
    """They are in the memory of the old leader: the new one takes them over with the term."""
    for turn in range(10):
        events["g"] = threading.Event()
        blocked = [a.rpc_async("b", wait_for, ("g",)) for _ in range(2)]
        others = [a.rpc_async("b", echo, (n,)) for n in range(40)]
        assert [future.wait() for future in others] == list(range(40)), turn
        events["g"].set()
        assert all(future.wait() for future in blocked)


def test_answers_that_nobody_waits_for_are_read_while_a_function_blocks(
    cluster: LocalCluster, a: Agent
) -> None:
    """An event that comes once, taken by a leader who then loses its term, would be lost for ever."""
    b = cluster.agent("b")
    for _ in range(30):
        events["g"] = threading.Event()
        blocked = a.rpc_async("b", wait_for, ("g",))
        answered = threading.Event()
        b.rpc_async("c", echo, (1,)).add_done_callback(lambda done, answered=answered: answered.set())  # type: ignore[misc]
        assert answered.wait(PATIENCE)
        events["g"].set()
        blocked.wait()


def test_a_callback_that_blocks_keeps_no_call_waiting(cluster: LocalCluster, a: Agent) -> None:
    events["g"] = threading.Event()
    inside = threading.Event()

    def block(done: Any) -> None:
        inside.set()
        events["g"].wait(PATIENCE)

    events["first"] = threading.Event()
    a.rpc_async("b", wait_for, ("first",)).add_done_callback(block)
    events["first"].set()  # not before: of an answer that is there the callback runs at once, here
    assert inside.wait(PATIENCE)
    for n in range(20):
        assert cluster.agent("b").rpc_sync("a", echo, (n,)) == n
        assert a.rpc_sync("b", echo, (n,)) == n
    events["g"].set()


def test_a_handler_that_fails_ends_no_term(
    cluster: LocalCluster, a: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    b = cluster.agent("b")
    a.rpc_sync("b", echo)

    def broken(session: Any, frame: Any) -> None:
        raise ValueError("in a handler")

    b.reactor._handlers = {**b.reactor._handlers, 99: broken}
    link = a._link("b")
    link.channel.queue(pack_frame(99, 0, 0, 0, 0, link.channel.acknowledgement()))
    link.channel.flush()
    for n in range(5):
        assert a.rpc_sync("b", echo, (n,)) == n
    assert "in a handler" in caplog.text


def test_standbys_are_used_again(cluster: LocalCluster, a: Agent) -> None:
    b = cluster.agent("b")
    for _ in range(20):
        events["g"] = threading.Event()
        before = b.reactor.takeovers
        function = new_function()
        future = a.rpc_async("b", function, ("g",))
        until(lambda before=before: b.reactor.takeovers > before)  # type: ignore[misc]
        events["g"].set()
        future.wait()
    assert len(b.reactor._threads) <= 4


def test_a_standby_that_comes_back_while_the_reactor_closes_is_dismissed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reactor_module, "STANDBY_SECONDS", 10 * PATIENCE)
    with LocalCluster("a") as cluster:
        reactor = cluster.agent("a").reactor
        closed = threading.Event()

        class Standbys(type(reactor._standbys)):  # type: ignore[misc]
            """Closes the reactor between the two steps of a hand-over."""

            def pop(self) -> Any:
                if threading.current_thread() is not handing:
                    return super().pop()
                standby = super().pop() if self else reactor._new_standby()
                closing = threading.Thread(target=lambda: (cluster.agent("a").close(), closed.set()))
                closing.start()
                until(lambda: reactor._closed and reactor.token.runs == 0)
                return standby

        reactor._standbys = Standbys()
        handing = threading.Thread(target=reactor.hand_over)
        handing.start()
        handing.join(PATIENCE)
        assert closed.wait(PATIENCE)
        until(lambda: not reactor._threads)
