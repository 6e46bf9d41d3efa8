from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rpcgroup.membership.memory import MemoryRendezvous
from rpcgroup.stats import StatsPublisher
from rpcgroup.testing.cluster import LocalCluster


class Rendezvous(MemoryRendezvous):
    """Counts what is written."""

    written: list[dict[str, Any]]

    def put_stats(self, stats: bytes) -> None:
        self.written.append(json.loads(stats))


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster("ab") as cluster:
        yield cluster


@pytest.fixture
def rendezvous(cluster: LocalCluster) -> Rendezvous:
    rendezvous = Rendezvous(cluster.rendezvous)
    rendezvous.written = []
    return rendezvous


def echo(x: Any) -> Any:
    return x


def test_what_is_shown(cluster: LocalCluster, rendezvous: Rendezvous) -> None:
    stats = StatsPublisher(cluster.agent("b"), rendezvous, 3600.0)
    stats._publish()
    for n in range(5):
        cluster.agent("a").rpc_sync("b", echo, (n,))
    reference = cluster.agent("a").remote("b", echo, ([1],))
    reference.to_here()
    stats.progress["step"] = 7
    stats._publish()
    first, second = rendezvous.written
    assert first["calls"] == 0
    assert second["calls"] >= 6
    assert second["rrefs"] == 1
    assert second["in_flight"] == second["pending"] == 0
    assert second["threads"] >= 0
    assert second["progress"] == {"step": 7}


def test_an_idle_worker_writes_nothing(cluster: LocalCluster, rendezvous: Rendezvous) -> None:
    stats = StatsPublisher(cluster.agent("b"), rendezvous, 3600.0)
    for _ in range(5):
        stats._publish()
    assert len(rendezvous.written) == 1


def test_progress_that_is_no_json_is_shown_as_text(cluster: LocalCluster, rendezvous: Rendezvous) -> None:
    stats = StatsPublisher(cluster.agent("b"), rendezvous, 3600.0)
    stats.progress["odd"] = {1, 2}
    stats._publish()
    assert rendezvous.written[0]["progress"] == {"odd": "{1, 2}"}


def test_nothing_after_the_end(cluster: LocalCluster, rendezvous: Rendezvous) -> None:
    stats = StatsPublisher(cluster.agent("b"), rendezvous, 3600.0)
    stats.close()
    stats.progress["late"] = 1
    stats._publish()
    stats.close()
    assert len(rendezvous.written) == 1


def test_the_end_of_an_agent_that_is_closed_already(cluster: LocalCluster, rendezvous: Rendezvous) -> None:
    stats = StatsPublisher(cluster.agent("b"), rendezvous, 3600.0)
    cluster.agent("b").close()
    stats.close()
    assert not rendezvous.written
