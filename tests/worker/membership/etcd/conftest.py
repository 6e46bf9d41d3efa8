from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.codec import Kind, wire
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.messages import Method, prefix_end
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


# What an administrator of etcd does, this package does not: so its messages stand here.
@dataclass
class NameRequest:
    name: str = wire(1, Kind.STRING)
    second: str = wire(2, Kind.STRING)


@dataclass
class Empty:
    pass


@dataclass
class Permission:
    type: int = wire(1, Kind.INT64)
    key: bytes = wire(2, Kind.BYTES)
    range_end: bytes = wire(3, Kind.BYTES)


@dataclass
class GrantPermissionRequest:
    name: str = wire(1, Kind.STRING)
    permission: Permission = wire(2, Permission)  # noqa: RUF009


def admin(name: str) -> Method[NameRequest, Empty]:
    return Method(f"/etcdserverpb.Auth/{name}", NameRequest, Empty)


READ_WRITE = 2


@pytest.fixture
def locked_etcd(etcd_server: EtcdServer, tmp_path: Path) -> Iterator[EtcdServer]:
    """Users root and worker, whose keys are those under /mine/ and of groups in namespace `mine`."""
    with EtcdServer(tmp_path / "etcd", "--bcrypt-cost", "4") as server:
        with closing(EtcdClient([server.endpoint])) as client:
            for user in ("root", "worker"):
                client.call(admin("UserAdd"), NameRequest(user, f"password of {user}"))
                client.call(admin("RoleAdd"), NameRequest(user))
                client.call(admin("UserGrantRole"), NameRequest(user, user))
            grant = Method("/etcdserverpb.Auth/RoleGrantPermission", GrantPermissionRequest, Empty)
            for prefix in (b"/mine/", b"/rpcgroup/mine/"):
                mine = Permission(READ_WRITE, prefix, prefix_end(prefix))
                client.call(grant, GrantPermissionRequest("worker", mine))
            client.call(Method("/etcdserverpb.Auth/AuthEnable", Empty, Empty), Empty())
        yield server


@pytest.fixture
def user() -> EtcdCredentials:
    return EtcdCredentials(username="worker", password="password of worker")
