from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from rpcgroup.agent import pool as module
from rpcgroup.agent.pool import BASE_THREADS, GROWTH, Pool

PATIENCE = 30.0


class Monitor:
    """Grows the pool when it is woken and asked to, as the agent's does in its ticks."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


@pytest.fixture
def pool(monitor: Monitor) -> Iterator[Pool]:
    pool = Pool("test", monitor.wake)
    yield pool
    pool.close(PATIENCE)


def occupy(pool: Pool, count: int) -> threading.Event:
    gate, inside = threading.Event(), threading.Semaphore(0)

    def job() -> None:
        inside.release()
        gate.wait(PATIENCE)

    for _ in range(count):
        pool.submit(job)
    for _ in range(min(count, BASE_THREADS)):
        assert inside.acquire(timeout=PATIENCE)
    return gate


def test_jobs_run(pool: Pool) -> None:
    done = threading.Semaphore(0)
    for _ in range(500):
        pool.submit(done.release)
    for _ in range(500):
        assert done.acquire(timeout=PATIENCE)
    assert pool.size <= BASE_THREADS


def test_as_many_threads_as_there_is_work_up_to_the_base(pool: Pool) -> None:
    gate = occupy(pool, 5)
    assert pool.size == 5
    gate.set()


def test_beyond_the_base_only_the_monitor_lets_it_grow_and_linearly(pool: Pool, monitor: Monitor) -> None:
    """A loaded machine makes no progress either: doubling made thousands of threads there."""
    gate = occupy(pool, BASE_THREADS)
    woken = monitor.woken
    done = threading.Semaphore(0)
    for _ in range(3 * GROWTH):
        pool.submit(done.release)
    assert pool.size == BASE_THREADS
    assert monitor.woken > woken
    assert pool.saturated
    assert pool.waiting == 3 * GROWTH
    pool.grow()
    assert pool.size <= BASE_THREADS + GROWTH
    for _ in range(3 * GROWTH):
        assert done.acquire(timeout=PATIENCE)
    gate.set()


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)])
def test_a_job_that_fails_costs_no_thread(
    pool: Pool, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def job() -> None:
        raise error

    for _ in range(3):
        pool.submit(job)
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(PATIENCE)
    gate = occupy(pool, BASE_THREADS)
    assert pool.saturated
    gate.set()
    assert len([r for r in caplog.records if "a job of the agent failed" in r.getMessage()]) == 3


def test_idle_threads_leave(monkeypatch: pytest.MonkeyPatch, monitor: Monitor) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    pool = Pool("idle", monitor.wake)
    occupy(pool, 4).set()
    threads = [t for t in threading.enumerate() if t.name == "rpcgroup-idle"]
    for thread in threads:
        thread.join(PATIENCE)
    assert pool.size == 0
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(PATIENCE)
    pool.close(PATIENCE)


def test_a_system_without_threads_is_borne(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = occupy(pool, 1)

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module.threading, "Thread", NoThread)
    done = threading.Event()
    pool.submit(done.set)
    assert pool.size == 1
    assert "1 threads are at work and the system gives no more" in caplog.text
    monkeypatch.undo()
    gate.set()
    assert done.wait(PATIENCE), "whoever is free takes it"


def test_closing_joins_what_ends_and_names_what_does_not(
    monitor: Monitor, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool("stuck", monitor.wake)
    gate = occupy(pool, 2)
    pool.close(0.01)
    assert "2 threads still run user functions and are left behind" in caplog.text
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "rpcgroup-stuck":
            thread.join(PATIENCE)
    pool.submit(gate.clear)
    assert gate.is_set(), "dropped"
