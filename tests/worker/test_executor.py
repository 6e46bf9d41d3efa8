from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rpcgroup.cuda.runtime import current_runtime
from rpcgroup.errors import GroupError, PeerUnreachableError, SerializationError
from rpcgroup.executor import GroupExecutor
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import recording_device

PATIENCE = 30.0

gates: dict[str, Future[Any]] = {}
runs: Counter[Any] = Counter()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    gates.clear()
    runs.clear()
    with LocalCluster("mab") as cluster:
        yield cluster


@pytest.fixture
def pool(cluster: LocalCluster) -> Iterator[GroupExecutor]:
    with cluster["m"].executor() as pool:
        yield pool


def square(x: int) -> int:
    runs[x] += 1
    return x * x


def add(x: int, y: int) -> int:
    return x + y


def fail(text: str) -> None:
    raise ValueError(text)


def unreachable_inside() -> None:
    runs["inside"] += 1
    raise PeerUnreachableError("somebody else was lost")


@async_execution
def when_opened(gate: str) -> Future[Any]:
    runs[gate] += 1
    return gates[gate]


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


def test_submit(pool: GroupExecutor) -> None:
    assert isinstance(pool, concurrent.futures.Executor)
    assert pool.submit(square, 3).result(PATIENCE) == 9
    assert pool.submit(add, 1, y=2).result(PATIENCE) == 3
    with pytest.raises(ValueError, match="why"):
        pool.submit(fail, "why").result(PATIENCE)


def test_map_keeps_the_order(pool: GroupExecutor) -> None:
    assert list(pool.map(square, range(200))) == [n * n for n in range(200)]
    assert list(pool.map(add, [1, 2, 3], [10, 20])) == [11, 22]
    with pytest.raises(ValueError, match="why"):
        list(pool.map(fail, ["why"]))
    assert max(runs.values()) == 1


def test_map_in_time(pool: GroupExecutor) -> None:
    gates["g"] = Future()
    with pytest.raises(concurrent.futures.TimeoutError):
        list(pool.map(when_opened, ["g"], timeout=0.05))
    gates["g"].set_result(1)


def test_only_others_and_only_of_the_role(cluster: LocalCluster) -> None:
    cluster.join("s", role="server")
    with cluster["m"].executor(role="server") as pool:
        names = set(pool.map(lambda n: threading.current_thread().name.rsplit("-", 1)[1], range(20)))
    assert names == {"s"}


def test_each_worker_has_so_many_tasks_at_a_time(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    with cluster["m"].executor(tasks_per_worker=2) as pool:
        futures = [pool.submit(when_opened, "g") for _ in range(10)]
        until(lambda: runs["g"] == 4)
        assert sum(future.running() for future in futures) == 4
        gates["g"].set_result(5)
        assert [future.result(PATIENCE) for future in futures] == [5] * 10


def test_tasks_wait_until_somebody_joins() -> None:
    with LocalCluster("m") as cluster, cluster["m"].executor() as pool:
        futures = [pool.submit(square, n) for n in range(5)]
        assert not futures[0].running()
        cluster.join("a")
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 4, 9, 16]


def test_a_task_that_has_not_started_can_be_cancelled(cluster: LocalCluster) -> None:
    with LocalCluster("m") as empty, empty["m"].executor() as pool:
        future = pool.submit(square, 1)
        assert future.cancel()
        empty.join("a")
        assert pool.submit(square, 2).result(PATIENCE) == 4
        assert runs[1] == 0


def test_thousands_of_tasks_that_cannot_be_sent(pool: GroupExecutor) -> None:
    """Each is over as soon as it starts: they must not be started by one another."""
    futures = [pool.submit(square, threading.Lock()) for _ in range(3000)]  # type: ignore[arg-type]
    for future in futures:
        with pytest.raises(SerializationError):
            future.result(PATIENCE)
    assert pool.submit(square, 3).result(PATIENCE) == 9


def test_the_task_of_a_dead_worker_fails(cluster: LocalCluster, pool: GroupExecutor) -> None:
    gates["g"] = Future()
    futures = [pool.submit(when_opened, "g") for _ in range(2)]
    until(lambda: runs["g"] == 2)
    cluster.evict("b")
    done, _ = concurrent.futures.wait(futures, PATIENCE, concurrent.futures.FIRST_COMPLETED)
    with pytest.raises(PeerUnreachableError, match="b"):
        done.pop().result()
    gates["g"].set_result(1)
    assert runs["g"] == 2
    assert list(pool.map(square, range(20))) == [n * n for n in range(20)], "the others go on"


def test_the_task_of_a_dead_worker_that_may_run_again_does(
    cluster: LocalCluster, pool: GroupExecutor
) -> None:
    gates["g"] = Future()
    results = pool.map(when_opened, ["g", "g"], retry=True)
    until(lambda: runs["g"] == 2)
    cluster.evict("b")
    gates["g"].set_result(7)
    assert list(results) == [7, 7]


def test_a_leaving_workers_tasks_go_to_others(cluster: LocalCluster, pool: GroupExecutor) -> None:
    """Nothing is lost and nothing runs twice, although tasks are given out all the time."""
    results = pool.map(square, range(2000))
    next(results)
    cluster.leave("b")
    assert len(list(results)) == 1999
    assert set(runs.values()) == {1}


def test_a_workers_own_trouble_with_another_is_its_tasks_failure(pool: GroupExecutor) -> None:
    for submit in (pool.submit, pool.submit_retrying):
        with pytest.raises(PeerUnreachableError, match="somebody else was lost"):
            submit(unreachable_inside).result(PATIENCE)
    assert runs["inside"] == 2
    assert list(pool.map(square, range(20))) == [n * n for n in range(20)], "and it goes on working"


def test_who_comes_and_goes_meanwhile(cluster: LocalCluster) -> None:
    with cluster["m"].executor() as pool:
        results = pool.map(square, range(1500))
        cluster.join("c")
        cluster.leave("a")
        cluster.join("d")
        cluster.leave("b")
        assert list(results) == [n * n for n in range(1500)]
    assert set(runs.values()) == {1}


def test_nothing_is_taken_after_shutdown(cluster: LocalCluster) -> None:
    pool = cluster["m"].executor()
    futures = [pool.submit(square, n) for n in range(100)]
    pool.shutdown()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(square, 1)
    pool.shutdown()


def test_shutdown_without_waiting_ends_by_itself(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    pool = cluster["m"].executor()
    futures = [pool.submit(when_opened, "g") for _ in range(4)]
    pool.shutdown(wait=False)
    gates["g"].set_result(1)
    assert [future.result(PATIENCE) for future in futures] == [1] * 4
    until(lambda: not pool._thread.is_alive())


def test_shutdown_that_cancels(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    pool = cluster["m"].executor()
    futures = [pool.submit(when_opened, "g") for _ in range(6)]
    until(lambda: runs["g"] == 2)
    closing = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
    closing.start()
    until(lambda: sum(future.cancelled() for future in futures) == 4)
    gates["g"].set_result(1)
    closing.join(PATIENCE)
    assert sum(future.done() and not future.cancelled() for future in futures) == 2


def test_the_worker_itself_leaves(cluster: LocalCluster) -> None:
    gates["g"] = Future()
    pool = cluster["m"].executor()
    futures = [pool.submit(when_opened, "g") for _ in range(6)]
    until(lambda: runs["g"] == 2)
    cluster.leave("m", graceful=False)
    for future in futures:
        with pytest.raises((GroupError, PeerUnreachableError)):
            future.result(PATIENCE)
    with pytest.raises((GroupError, RuntimeError), match="has left the group"):
        pool.submit(square, 1)
    pool.shutdown()
    gates["g"].set_result(1)


def test_callbacks_of_a_task_may_submit_more(pool: GroupExecutor) -> None:
    done: concurrent.futures.Future[int] = concurrent.futures.Future()

    def again(n: int, finished: concurrent.futures.Future[int]) -> None:
        if n == 50:
            done.set_result(finished.result())
        else:
            pool.submit(square, n).add_done_callback(lambda f: again(n + 1, f))

    again(0, concurrent.futures.Future())
    assert done.result(PATIENCE) == 49 * 49


def made_on_device() -> torch.Tensor:
    device: Any = current_runtime()
    tensor: torch.Tensor = device.tensor([1.0, 2.0], 1)
    return tensor


def test_who_takes_a_result_is_ordered_behind_its_device() -> None:
    maps = {"m": {"a": {"cuda:0": "cuda:1"}}}
    with recording_device() as device, LocalCluster("ma", device_maps=maps) as cluster:
        held = device.hold(0)
        with cluster["m"].executor() as pool:
            result = pool.submit(made_on_device)
            until(result.done)
            held.release()
            total = result.result(PATIENCE) + pool.submit(made_on_device).result(PATIENCE)
        assert device.to_host(total).tolist() == [2.0, 4.0]
