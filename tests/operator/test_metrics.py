from __future__ import annotations

import socket
import urllib.request

import pytest

from rpcgroup_operator.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_reconcile_counts_by_how_it_ended() -> None:
    metrics = Metrics()
    with metrics.reconcile():
        pass
    with pytest.raises(OSError), metrics.reconcile():
        raise OSError("no answer")
    assert value(metrics, "rpcgroup_reconciles_total", result="success") == 1
    assert value(metrics, "rpcgroup_reconciles_total", result="error") == 1
    assert value(metrics, "rpcgroup_reconcile_duration_seconds_count") == 2


def test_the_groups_are_counted_when_somebody_asks() -> None:
    metrics, groups = Metrics(), [1, 2, 3]
    metrics.count_groups(lambda: len(groups))
    groups.append(4)
    assert value(metrics, "rpcgroup_groups") == 4


def test_they_are_served_and_the_port_is_free_again() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with Metrics().serve(port):
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert "rpcgroup_operator_leading 0.0" in page
