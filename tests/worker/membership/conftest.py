from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.store.client import Store
from rpcgroup.testing.etcd import etcd_server, etcd_url
from rpcgroup.testing.rendezvous import EtcdPlace, MemoryPlace, Place, RecordingListener, StorePlace

__all__ = ["etcd_server", "etcd_url"]

dist: Any = torch.distributed  # its stub exports nothing of this


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


@pytest.fixture
def listeners() -> Callable[[int], list[RecordingListener]]:
    return lambda count: [RecordingListener() for _ in range(count)]


@pytest.fixture(scope="session", autouse=True)
def tcp_store_warmed_up() -> None:
    """The first one in a process opens a pipe of libuv that lives as long as the process."""
    dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def connector(stack: ExitStack, kind: str, folder: Path) -> Callable[[str], Store]:
    """Opens the stores of groups, each time for another of its members."""
    if kind == "file":
        return lambda group: dist.FileStore(str(folder / group), -1)
    if kind == "hash":
        hashed = dist.HashStore()
        return lambda group: dist.PrefixStore(group, hashed)
    opened: list[Any] = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    port = opened[0].port
    stack.callback(
        opened.clear
    )  # a store is closed when nobody holds it, and pytest holds on to what fixtures give

    def connect(group: str) -> Store:
        client = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        opened.append(dist.PrefixStore(group, client))
        store: Store = weakref.proxy(opened[-1])
        return store

    return connect


@pytest.fixture
def store_connector() -> Callable[[ExitStack, str, Path], Callable[[str], Store]]:
    return connector


@pytest.fixture
def own_etcd(tmp_path: Path, etcd_server: EtcdServer) -> Iterator[EtcdServer]:
    """An etcd that the test may break. (The shared one has warmed gRPC up.)"""
    with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def own_place(own_etcd: EtcdServer) -> Iterator[EtcdPlace]:
    """A group in an etcd that the test may break, with the shortest leases there are."""
    with ExitStack() as stack:
        yield EtcdPlace(stack, own_etcd, lease_ttl=2)


NOT_OVER_A_STORE = ("test_stats_of_all_and_gone_with_the_lease", "test_a_value_watch_tells")
"""What has no meaning there: nobody outside could read stats, and a store tells of no change."""


@pytest.fixture(params=["memory", "hash", "file", "tcp", "etcd"])
def place(request: pytest.FixtureRequest, tmp_path: Path, etcd_server: EtcdServer) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(stack)
        elif request.param == "etcd":
            yield EtcdPlace(stack, etcd_server)
        elif request.node.name.startswith(NOT_OVER_A_STORE):
            pytest.skip("a c10d store has no stats and no watch")
        else:
            yield StorePlace(stack, connector(stack, request.param, tmp_path))


@pytest.fixture(params=["memory", "etcd"])
def breakable_place(request: pytest.FixtureRequest, etcd_server: EtcdServer) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(stack)
        else:
            yield EtcdPlace(stack, request.getfixturevalue("own_etcd"), lease_ttl=2)
