"""One test for each race that a review of the agent's threads has found."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rpcgroup.agent import invocation
from rpcgroup.agent.agent import Agent
from rpcgroup.testing.cluster import LocalCluster

PATIENCE = 30.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster("ab", transport="tcp") as cluster:
        yield cluster


@pytest.fixture
def a(cluster: LocalCluster) -> Agent:
    return cluster.agent("a")


def add(x: int, y: int) -> int:
    return x + y


def test_a_definition_that_loads_slowly_is_not_overtaken_by_its_call(
    a: Agent, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = invocation.load_function
    takeovers = cluster.agent("b").reactor.takeovers

    def load_after_a_takeover(description: bytes) -> Any:
        deadline = time.monotonic() + PATIENCE
        while cluster.agent("b").reactor.takeovers == takeovers and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        return load(description)

    monkeypatch.setattr(invocation, "load_function", load_after_a_takeover)
    assert a.rpc_sync("b", add, (1, 2)) == 3
