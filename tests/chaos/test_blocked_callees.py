"""Ten thousand callees that block, each in a thread of its own: calls go on beside them, and all are answered."""

from __future__ import annotations

import threading
import time

import pytest

from rpcgroup.testing.cluster import LocalCluster

CALLEES = 10_000
GATES = [threading.Event() for _ in range(100)]
"""Opened one after the other: that many threads woken at once would only fight over the interpreter."""


def pass_gate(number: int) -> int:
    assert GATES[number % len(GATES)].wait(120)
    return number


def wait_until_threads(cluster: LocalCluster, low: int, high: int) -> None:
    end = time.monotonic() + 120
    while not low <= cluster.agent("b").stats()["threads"] <= high:
        assert time.monotonic() < end, cluster.agent("b").stats()
        threading.Event().wait(0.1)


@pytest.mark.timeout(300)
def test_ten_thousand_callees_that_block() -> None:
    with LocalCluster(["a", "b"]) as cluster:
        a = cluster.agent("a")
        futures = [a.rpc_async("b", pass_gate, (n,), timeout=0) for n in range(CALLEES)]
        wait_until_threads(cluster, CALLEES - 100, CALLEES)
        assert a.rpc_sync("b", len, ((),)) == 0
        for number, gate in enumerate(GATES):
            gate.set()
            for n in range(number, CALLEES, len(GATES)):
                assert futures[n].wait() == n
        wait_until_threads(cluster, 0, 100)
