from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.testing.etcd import etcd_server, etcd_url
from rpcgroup.testing.rendezvous import EtcdPlace, MemoryPlace, Place, RecordingListener

__all__ = ["etcd_server", "etcd_url"]


@pytest.fixture
def listener() -> RecordingListener:
    return RecordingListener()


@pytest.fixture
def listeners() -> Callable[[int], list[RecordingListener]]:
    return lambda count: [RecordingListener() for _ in range(count)]


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


@pytest.fixture(params=["memory", "etcd"])
def place(request: pytest.FixtureRequest, etcd_server: EtcdServer) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(stack)
        else:
            yield EtcdPlace(stack, etcd_server)


@pytest.fixture(params=["memory", "etcd"])
def breakable_place(request: pytest.FixtureRequest, etcd_server: EtcdServer) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(stack)
        else:
            yield EtcdPlace(stack, request.getfixturevalue("own_etcd"), lease_ttl=2)
