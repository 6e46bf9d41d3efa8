"""Each group's user in etcd, as the operator makes and removes them: a real API server, an etcd with authentication."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient, EtcdRefusedError
from rpcgroup.membership.etcd.codec import Kind, wire
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import (
    PUT,
    RANGE,
    Method,
    PutRequest,
    RangeRequest,
    StatusRequest,
    prefix_end,
)
from rpcgroup.membership.etcd.users import Authentication, Users
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.url import open_rendezvous
from rpcgroup.testing.rendezvous import RecordingListener
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.random_walk import Group, started_operator

pytestmark = pytest.mark.timeout(280)

Until = Callable[..., None]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd", "--bcrypt-cost", "4") as server:
        yield server


@pytest.fixture
def operator(
    simulated_nodes: SimulatedNodes,
    control_plane: ControlPlane,
    etcd: EtcdServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Program]:
    monkeypatch.setenv("RPCGROUP_OPERATOR_SECRET", "users-test")
    monkeypatch.setenv("RPCGROUP_OPERATOR_ETCD_AUTH", "1")
    with started_operator(control_plane, etcd, tmp_path) as program:
        yield program


@pytest.fixture
def root(access: Access, etcd: EtcdServer, operator: Program, until: Until) -> Iterator[EtcdClient]:
    """With the password that the operator has made."""
    until(
        lambda: access.get("secrets", "--namespace=default", "--field-selector=metadata.name=users-test")[
            "items"
        ]
    )
    password = entry(access, "default", "users-test", "etcd-root-password")
    credentials = EtcdCredentials(username="root", password=password)
    with closing(EtcdClient([etcd.endpoint], credentials)) as client:
        yield client


def entry(access: Access, namespace: str, secret: str, key: str) -> str:
    data = access.get("secret", secret, f"--namespace={namespace}")["data"]
    return base64.b64decode(data[key]).decode()


def credentials_in(access: Access, pod: dict[str, Any]) -> EtcdCredentials:
    """What the pod's worker finds in its environment and its volume."""
    (container,) = pod["spec"]["containers"]
    env = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "rpcgroup-secret"]
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "rpcgroup-secret"]
    folder, _, key = env[contract.ENV_ETCD_PASSWORD_FILE].rpartition("/")
    assert folder == mount["mountPath"]
    names = [source["secret"]["name"] for source in volume["projected"]["sources"]]
    held = {
        key: secret
        for secret in names
        for key in access.get("secret", secret, f"--namespace={pod['metadata']['namespace']}")["data"]
    }
    password = entry(access, pod["metadata"]["namespace"], held[key], key)
    return EtcdCredentials(username=env[contract.ENV_ETCD_USERNAME], password=password)


@dataclass
class Names:
    """The answers of UserList and RoleList."""

    found: list[str] = wire(2, Kind.STRING, repeated=True)  # noqa: RUF009


def left(root: EtcdClient, namespace: str) -> list[str]:
    """Keys, users and roles of groups of a namespace, and the operator's marks of them."""
    lists = [
        root.retry(Method(f"/etcdserverpb.Auth/{what}", StatusRequest, Names), StatusRequest(), 10).found
        for what in ("UserList", "RoleList")
    ]
    keys = root.retry(RANGE, RangeRequest(b"/", prefix_end(b"/"), keys_only=True), 10).kvs
    return [
        name for name in [*lists[0], *lists[1], *(kv.key.decode() for kv in keys)] if f"/{namespace}/" in name
    ]


@pytest.fixture
def pod(group: Group, until: Until) -> dict[str, Any]:
    """Of a group of one."""
    group.apply(replicas=1)
    until(group.pods)
    (pod,) = group.pods().values()
    return dict(pod)


def url(etcd: EtcdServer, namespace: str) -> str:
    return f"etcd://{etcd.endpoint}/{namespace}/g"


def record(pod: dict[str, Any]) -> MemberRecord:
    metadata = pod["metadata"]
    return MemberRecord(
        name=metadata["name"], state=MemberState.READY, pod_name=metadata["name"], pod_uid=metadata["uid"]
    )


def test_a_worker_gets_in_by_what_its_pod_has(
    pod: dict[str, Any],
    group: Group,
    access: Access,
    namespace: str,
    etcd: EtcdServer,
    root: EtcdClient,
    until: Until,
) -> None:
    mine = credentials_in(access, pod)
    assert mine.username == contract.etcd_user(namespace, "g")
    with (
        closing(open_rendezvous(url(etcd, namespace), credentials=mine)) as seat,
        closing(open_rendezvous(url(etcd, "elsewhere"), credentials=mine)) as elsewhere,
    ):
        seat.join(record(pod), admit=lambda me, earlier: None, listener=RecordingListener(), timeout=20)
        until(lambda: group.status().get("readyReplicas") == 1)
        with pytest.raises(EtcdRefusedError, match="permission denied"):
            elsewhere.kv.get("k")
        seat.kv.put("k", b"v")
        seat.put_stats(b"{}")
        group.delete()
        until(lambda: not group.pods())
    until(lambda: not left(root, namespace))


def test_what_goes_while_no_operator_is_there_is_cleared_away_by_the_next(
    pod: dict[str, Any],
    group: Group,
    access: Access,
    namespace: str,
    operator: Program,
    root: EtcdClient,
    until: Until,
) -> None:
    """Of its own groups, and of no others."""
    theirs = f"/rpcgroup/{namespace}/theirs/kv/k".encode()
    mark = f"{contract.ETCD_OPERATOR_ROOT}/another/default/it/{namespace}/theirs".encode()
    for key in (theirs, mark, f"/rpcgroup/{namespace}/g/kv/k".encode()):
        root.call(PUT, PutRequest(key, b"v"))
    operator.stop()
    group.delete()
    until(lambda: not group.pods())
    assert len(left(root, namespace)) > 2
    operator.start()
    until(lambda: set(left(root, namespace)) == {theirs.decode(), mark.decode()})


def test_a_store_that_came_back_empty_gets_its_users_again(
    pod: dict[str, Any], access: Access, namespace: str, etcd: EtcdServer, root: EtcdClient, until: Until
) -> None:
    """With the same passwords: nobody has to be restarted."""
    mine = credentials_in(access, pod)
    with closing(open_rendezvous(url(etcd, namespace), credentials=mine)) as seat:
        seat.join(record(pod), admit=lambda me, earlier: None, listener=RecordingListener(), timeout=20)
        etcd.kill()
        etcd.wipe()
        etcd.start()
        until(lambda: Users(root).authentication() is Authentication.ADMINISTRATOR)
        key = GroupKeys(namespace, "g").member(pod["metadata"]["name"])
        until(lambda: root.retry(RANGE, RangeRequest(key), 10).kvs)
    with closing(open_rendezvous(url(etcd, namespace), credentials=mine)) as anew:
        anew.kv.put("k", b"v")
