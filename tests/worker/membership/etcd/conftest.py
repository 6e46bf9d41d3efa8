from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.testing.proxy import FaultyProxy


@pytest.fixture
def client(etcd_server: EtcdServer) -> Iterator[EtcdClient]:
    client = EtcdClient([etcd_server.endpoint])
    yield client
    client.close()


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[FaultyProxy]:
    """Between a client and the shared etcd."""
    with FaultyProxy(etcd_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def far_client(proxy: FaultyProxy) -> Iterator[EtcdClient]:
    """A client whose network the test can break."""
    client = EtcdClient([proxy.endpoint])
    yield client
    client.close()


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> bytes:
    """Keys that no other test uses."""
    return f"/tests/{request.node.name}/".encode()


@pytest.fixture
def tls_files() -> Path:
    """A CA, a server's certificate for 127.0.0.1 and a client's; made for these tests, for 100 years."""
    return Path(__file__).with_name("tls")
