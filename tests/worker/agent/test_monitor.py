from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rpcgroup.agent.agent import Agent
from rpcgroup.testing.cluster import LocalCluster

PATIENCE = 30.0


@pytest.fixture
def a() -> Iterator[Agent]:
    with LocalCluster("a") as cluster:
        yield cluster.agent("a")


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


def test_it_sleeps_without_traffic_and_can_be_woken(a: Agent) -> None:
    for _ in range(5):
        until(lambda: a.monitor.cold)
        a.monitor.wake()
        a.monitor.wake()
    until(lambda: a.monitor.cold)


def test_timers_run_among_the_chores_in_the_order_of_their_time(a: Agent) -> None:
    until(lambda: a.monitor.cold)
    ran: list[str] = []
    done = threading.Event()
    a.monitor.call_later(0.06, done.set)
    a.monitor.call_later(0.03, lambda: ran.append("second"))
    a.monitor.call_later(0.0, lambda: ran.append(threading.current_thread().name))
    assert done.wait(PATIENCE)
    assert ran == ["rpcgroup-chores-a", "second"]


def test_a_timer_far_away_keeps_nobody_awake(a: Agent) -> None:
    a.monitor.call_later(3600, lambda: None)
    until(lambda: a.monitor.cold)
    soon = threading.Event()
    a.monitor.call_later(0.01, soon.set)
    assert soon.wait(PATIENCE)


def test_timers_from_many_threads(a: Agent) -> None:
    done = threading.Semaphore(0)

    def add() -> None:
        for n in range(100):
            a.monitor.call_later((n % 7) / 1000, done.release)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for _ in range(400):
        assert done.acquire(timeout=PATIENCE)


def test_it_survives_what_goes_wrong_in_a_tick(
    a: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It once died of a closed descriptor, and every deadline with it."""
    broken = threading.Event()

    def sweep(now: float) -> None:
        broken.set()
        raise ValueError("in a tick")

    monkeypatch.setattr(a.connections, "sweep", sweep)
    a.monitor.expect(time.monotonic())
    assert broken.wait(PATIENCE)
    monkeypatch.undo()
    done = threading.Event()
    a.monitor.call_later(0, done.set)
    assert done.wait(PATIENCE)
    assert "the monitor failed in a tick" in caplog.text
