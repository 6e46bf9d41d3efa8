from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rpcgroup.membership.memory import MemoryRendezvous
from rpcgroup.stats import StatsPublisher
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import recording_device


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
    assert "devices" not in second
    assert second["progress"] == {"step": 7}


def test_how_tensors_on_devices_travelled_is_shown_of_those_with_whom_there_were_most(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpcgroup.stats.PEERS_SHOWN", 1)
    maps = {"a": {"b": {"cuda:0": "cuda:1"}, "c": {"cuda:0": "cuda:0"}}}
    with recording_device() as device, LocalCluster("abc", device_maps=maps) as cluster:
        a, b = cluster.agent("a"), cluster.agent("b")
        publishers = [StatsPublisher(agent, rendezvous, 3600.0) for agent in (a, b, cluster.agent("c"))]
        publishers[0]._publish()
        a.rpc_sync("b", echo, (device.tensor([1.0, 2.0], 0),))
        a.rpc_sync("c", echo, (device.tensor([1.0], 0),))
        for publisher in publishers:
            publisher._publish()
        stats = dict(a.stats())
    first, *rest = rendezvous.written
    assert "devices" not in first
    there_and_back = {"sent": {"host": 8}, "received": {"host": 8}}
    assert [written["devices"] for written in rest] == [
        {"b": there_and_back},
        {"a": there_and_back},
        {"a": {"sent": {"host": 4}, "received": {"host": 4}}},
    ]
    assert (stats["device_bytes_sent_host"], stats["device_bytes_received_host"]) == (12, 12)
    assert stats["device_bytes_sent_ipc"] == 0


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
