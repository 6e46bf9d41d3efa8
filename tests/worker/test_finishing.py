"""How the members of a group in one process come to rest, over the memory transport."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future as PoolFuture
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rpcgroup.errors import DrainedError, GroupError
from rpcgroup.finishing import finish_alone, finish_together
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.testing.cluster import LocalCluster

PATIENCE = 30.0
gates: dict[str, Future[Any]] = {}
begun = threading.Semaphore(0)
runs: list[str] = []


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    runs.clear()
    with LocalCluster("abc") as cluster:
        yield cluster


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@async_execution
def when_opened(gate: str) -> Future[Any]:
    begun.release()
    return gates[gate]


def note(what: str) -> None:
    runs.append(what)


def together(
    cluster: LocalCluster, threads: ThreadPoolExecutor, names: str, timeout: float | None = None
) -> list[PoolFuture[None]]:
    return [
        threads.submit(
            finish_together, cluster[name].agent, cluster[name].collectives, ["a", "b", "c"], timeout
        )
        for name in names
    ]


def ended(futures: list[PoolFuture[None]]) -> None:
    for future in futures:
        future.result(PATIENCE)


def test_idle_members_come_to_rest_when_the_last_has_come(
    cluster: LocalCluster, threads: ThreadPoolExecutor
) -> None:
    early = together(cluster, threads, "ab")
    assert cluster["c"].agent.rpc_sync("a", len, ([],)) == 0, "they serve until then"
    assert not any(future.done() for future in early)
    ended([*early, *together(cluster, threads, "c")])


def test_calls_under_way_are_answered_first(cluster: LocalCluster, threads: ThreadPoolExecutor) -> None:
    gates["g"] = Future()
    answer = cluster["c"].agent.rpc_async("b", when_opened, ("g",))
    assert begun.acquire(timeout=PATIENCE)
    ending = together(cluster, threads, "abc")
    gates["g"].then(lambda _: cluster["b"].agent.rpc_async("a", note, ("spawned by the call",)).wait())
    assert not any(future.done() for future in ending)
    gates["g"].set_result("answer")
    ended(ending)
    assert answer.wait() == "answer"
    assert runs == ["spawned by the call"]


def test_references_are_given_back(cluster: LocalCluster, threads: ThreadPoolExecutor) -> None:
    reference = cluster["c"].agent.remote("a", len, ([1],))
    assert reference.to_here() == 1
    assert cluster["a"].agent.references.counts().owner_rrefs == 1
    ended(together(cluster, threads, "abc"))
    assert cluster["a"].agent.references.counts().owner_rrefs == 0


def test_who_does_not_come_in_time_is_named(cluster: LocalCluster, threads: ThreadPoolExecutor) -> None:
    for future in together(cluster, threads, "ac", 0.2):
        with pytest.raises(GroupError, match=r"did not come within 0\.2 s: b"):
            future.result(PATIENCE)


def test_nobody_waits_for_the_dead(cluster: LocalCluster, threads: ThreadPoolExecutor) -> None:
    ending = together(cluster, threads, "bc")
    cluster.evict("a")
    ended(ending)


def test_alone_the_work_under_way_ends_and_new_work_is_refused(
    cluster: LocalCluster, threads: ThreadPoolExecutor
) -> None:
    gates["g"] = Future()
    answer = cluster["b"].agent.rpc_async("a", when_opened, ("g",))
    assert begun.acquire(timeout=PATIENCE)
    ending = threads.submit(finish_alone, cluster["a"].agent, PATIENCE)
    gates["g"].set_result("answer")
    assert answer.wait() == "answer"
    ending.result(PATIENCE)
    with pytest.raises(DrainedError, match="leaving"):
        cluster["b"].agent.rpc_sync("a", len, ([],))
