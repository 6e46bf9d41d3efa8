from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.auth_messages import (
    ROLE_ADD,
    ROLE_GRANT_PERMISSION,
    USER_ADD,
    USER_GRANT_ROLE,
    Permission,
    RoleAddRequest,
    RoleGrantPermissionRequest,
    UserAddRequest,
    UserGrantRoleRequest,
)
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.messages import prefix_end
from rpcgroup.membership.etcd.users import READ_WRITE, enable_authentication
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


@pytest.fixture
def root() -> EtcdCredentials:
    return EtcdCredentials(username="root", password="password of root")


@pytest.fixture
def secured_etcd(etcd_server: EtcdServer, root: EtcdCredentials, tmp_path: Path) -> Iterator[EtcdServer]:
    """Authentication is on, and there is no user but root."""
    with EtcdServer(tmp_path / "etcd", "--bcrypt-cost", "4") as server:
        with closing(EtcdClient([server.endpoint])) as client:
            enable_authentication(client, root.password)
        yield server


@pytest.fixture
def root_client(secured_etcd: EtcdServer, root: EtcdCredentials) -> Iterator[EtcdClient]:
    with closing(EtcdClient([secured_etcd.endpoint], root)) as client:
        yield client


@pytest.fixture
def locked_etcd(secured_etcd: EtcdServer, root_client: EtcdClient, user: EtcdCredentials) -> EtcdServer:
    """Also a user `worker`, whose keys are those under /mine/ and of groups in namespace `mine`."""
    name = user.username
    root_client.call(USER_ADD, UserAddRequest(name, user.password))
    root_client.call(ROLE_ADD, RoleAddRequest(name))
    root_client.call(USER_GRANT_ROLE, UserGrantRoleRequest(name, name))
    for prefix in (b"/mine/", b"/rpcgroup/mine/", b"/rpcgroup-stats/mine/"):
        mine = Permission(READ_WRITE, prefix, prefix_end(prefix))
        root_client.call(ROLE_GRANT_PERMISSION, RoleGrantPermissionRequest(name, mine))
    return secured_etcd


@pytest.fixture
def user() -> EtcdCredentials:
    return EtcdCredentials(username="worker", password="password of worker")
