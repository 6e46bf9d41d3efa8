"""The operator with the chart's rights: they are enough, and none of them is too much."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from tests.cluster.bed.access import Access, CommandError
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program, free_port
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.install_manifest import CHART
from tests.cluster.simulated_workers import SimulatedWorkers

RELEASE_NAMESPACE: Final = "rpcgroup-system"
ACCOUNT: Final = "rpcgroup"
OPERATOR, DISCOVERY, LEADER = "rpcgroup-operator", "rpcgroup-discovery", "rpcgroup-leader"
SECRETS: Final = "rpcgroup-secrets"
REFUSED: Final = re.compile(r"forbidden|Not enough permissions", re.IGNORECASE)
pytestmark = pytest.mark.timeout(300)

Until = Callable[..., None]


@pytest.fixture(scope="module")
def control_plane(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Of its own: the definition is the release's, and its roles are changed."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), programs) as plane:
        yield plane


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


def install(access: Access, etcd: EtcdServer, **values: object) -> None:
    """Without operators of its own: those of this file are processes here, with the account's token."""
    settings = {
        "replicaCount": 0,
        "logLevel": "debug",
        "etcd": {"external": {"endpoints": [etcd.endpoint]}},
        **values,
    }
    access.helm(
        *("upgrade", "--install", "--force-conflicts", "rpcgroup", str(CHART), "--values=-"),
        *(f"--namespace={RELEASE_NAMESPACE}", "--create-namespace"),
        input=json.dumps(settings),
    )
    access.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/rpcgroups.{contract.DOMAIN}")


@pytest.fixture(scope="module")
def release(control_plane: ControlPlane, simulated_nodes: SimulatedNodes, etcd: EtcdServer) -> Access:
    install(control_plane.access, etcd)
    return control_plane.access


@contextlib.contextmanager
def operator(access: Access, folder: Path) -> Iterator[Program]:
    """Started as the release's Deployment says; it may fail. `program.log` is its log."""
    here = f"--namespace={RELEASE_NAMESPACE}"
    access.kubectl("delete", "lease", here, "--all")
    (container,) = access.get("deployment", OPERATOR, here)["spec"]["template"]["spec"]["containers"]
    variables = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    account = access.service_account_kubeconfig(RELEASE_NAMESPACE, ACCOUNT)
    program = Program(
        "operator",
        [
            *(sys.executable, "-m", "rpcgroup_operator", *container["args"]),
            *(f"--liveness-port={free_port()}", f"--metrics-port={free_port()}"),
            f"--lease-namespace={RELEASE_NAMESPACE}",
        ],
        folder / "operator.log",
        lambda: True,
        env={**variables, "KUBECONFIG": str(account), "POD_NAME": "operator-0"},
    )
    program.start()
    try:
        yield program
    finally:
        program.stop()


def refusals(program: Program) -> list[str]:
    return [line for line in program.log.read_text().splitlines() if REFUSED.search(line)]


class Group:
    """The group `g` of a namespace, with workers that join."""

    def __init__(self, access: Access, namespace: str, until: Until) -> None:
        self._access, self._in, self._until = access, f"--namespace={namespace}", until

    def apply(self, replicas: int = 2, at_least: int = 1, **more: object) -> None:
        template = {"spec": {"containers": [{"name": "main", "image": "worker"}]}}
        manifest = {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": "g"},
            "spec": {"replicas": replicas, "minReplicas": at_least, "template": template, **more},
        }
        self._access.kubectl("apply", self._in, "--filename=-", input=json.dumps(manifest))

    def settle(self, replicas: int = 2) -> None:
        self._until(lambda: self._joined() == (replicas, replicas))

    def shrink(self) -> None:
        self.apply()
        self.settle()
        self.apply(replicas=1)

    def lose_one(self) -> None:
        self.apply()
        self.settle()
        self._access.kubectl("delete", "pod", "g-worker-0", self._in, "--grace-period=0", "--force")

    def renew_certificates(self) -> None:
        """Its Secret with certificates is there, and holds none."""
        self.apply(suspend=True)
        name = f"g-rpcgroup-tls-{self._access.get('rpcgroup/g', self._in)['metadata']['uid'][:8]}"
        self._access.kubectl("create", "secret", "generic", name, self._in)
        self.apply(suspend=True, security={"tls": True})

    def need_none(self) -> None:
        self.apply()
        self._until(lambda: self._access.get("poddisruptionbudgets", self._in)["items"])
        self.apply(at_least=0)

    def delete(self) -> None:
        self._access.kubectl("delete", "rpcgroup/g", self._in)

    def pods(self) -> list[Any]:
        found: list[Any] = self._access.get("pods", self._in)["items"]
        return found

    def status(self) -> dict[str, Any]:
        shown: dict[str, Any] = self._access.get("rpcgroup/g", self._in).get("status", {})
        return shown

    def _joined(self) -> tuple[int, int]:
        """Pods, and those of them with the gate set."""
        gates = [
            condition["status"] == "True"
            for pod in self.pods()
            for condition in pod["status"].get("conditions", [])
            if condition["type"] == contract.READINESS_GATE
        ]
        return len(self.pods()), sum(gates)


@pytest.fixture
def group(access: Access, namespace: str, etcd: EtcdServer, until: Until) -> Iterator[Group]:
    with access.client() as api, SimulatedWorkers(api, namespace, etcd.endpoint):
        yield Group(access, namespace, until)


def live(group: Group, until: Until) -> None:
    """Everything that the operator does for a group."""
    group.apply()
    group.settle()
    until(lambda: group.status().get("readyReplicas") == 2)
    group.lose_one()
    group.settle()
    group.apply(replicas=1)
    group.settle(1)
    group.need_none()
    group.settle()
    group.delete()
    until(lambda: not group.pods())


def test_they_are_enough(release: Access, group: Group, until: Until, tmp_path: Path) -> None:
    with operator(release, tmp_path) as program:
        live(group, until)
        assert refusals(program) == []


def test_they_are_enough_for_some_namespaces(
    release: Access, group: Group, namespace: str, etcd: EtcdServer, until: Until, tmp_path: Path
) -> None:
    install(release, etcd, watchNamespaces=[namespace])
    try:
        with operator(release, tmp_path) as program:
            live(group, until)
            assert refusals(program) == []
        account = f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:{ACCOUNT}"
        with pytest.raises(CommandError):
            release.kubectl("auth", "can-i", "create", "pods", "--namespace=default", account)
    finally:
        install(release, etcd)


@dataclass(frozen=True)
class Right:
    role: str
    resource: str
    """With its subresource."""
    verb: str
    use: Callable[[Group], None] = Group.apply
    refusal: str = ""
    """What the log says without it, where that is not the API server's usual sentence."""

    def refusal_in(self, line: str) -> bool:
        usual = rf'cannot {self.verb} resource \\*"{self.resource}\\*"'
        return bool(re.search(self.refusal or usual, line))

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


def idle(group: Group) -> None:
    """It is used from the start."""


RIGHTS: Final = [
    Right(OPERATOR, "rpcgroups", "list", idle),
    Right(OPERATOR, "rpcgroups", "watch", idle),
    Right(OPERATOR, "rpcgroups/status", "patch"),
    Right(OPERATOR, "rpcgroups/finalizers", "update", refusal="cannot set blockOwnerDeletion"),
    Right(OPERATOR, "pods", "list", idle),
    Right(OPERATOR, "pods", "watch", idle),
    Right(OPERATOR, "pods", "create"),
    Right(OPERATOR, "pods", "get", Group.lose_one),
    Right(OPERATOR, "pods", "patch", Group.shrink),
    Right(OPERATOR, "pods", "delete", Group.shrink),
    Right(OPERATOR, "pods/status", "patch"),
    Right(OPERATOR, "secrets", "create"),
    Right(OPERATOR, "secrets", "get", idle),
    Right(OPERATOR, "secrets", "update", Group.renew_certificates),
    Right(OPERATOR, "poddisruptionbudgets", "get"),
    Right(OPERATOR, "poddisruptionbudgets", "create"),
    Right(OPERATOR, "poddisruptionbudgets", "patch"),
    Right(OPERATOR, "poddisruptionbudgets", "delete", Group.need_none),
    Right(OPERATOR, "events", "create"),
    Right(DISCOVERY, "customresourcedefinitions", "list", idle),
    Right(DISCOVERY, "customresourcedefinitions", "watch", idle),
    Right(DISCOVERY, "namespaces", "get", idle),
    Right(LEADER, "leases", "create", idle),
    Right(LEADER, "leases", "get", idle),
    Right(LEADER, "leases", "update", idle),
]


def roles(access: Access) -> dict[str, Any]:
    found = access.get(
        "clusterroles,roles", "--all-namespaces", "--selector=app.kubernetes.io/instance=rpcgroup"
    )
    return {role["metadata"]["name"]: role for role in found["items"]}


def test_each_is_in_the_table(release: Access) -> None:
    granted = [
        (role, resource, verb)
        for role, body in roles(release).items()
        for rule in body["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert sorted(granted) == sorted((right.role, right.resource, right.verb) for right in RIGHTS)


@pytest.mark.parametrize("right", RIGHTS, ids=str)
def test_none_is_too_much(right: Right, release: Access, group: Group, until: Until, tmp_path: Path) -> None:
    with without(right, release, until), operator(release, tmp_path) as program:
        right.use(group)
        until(lambda: any(right.refusal_in(line) for line in refusals(program)))


RIGHTS_FOR_SOME_NAMESPACES: Final = [
    Right(DISCOVERY, "namespaces", "list"),
    Right(DISCOVERY, "namespaces", "watch"),
    Right(SECRETS, "secrets", "create"),
    Right(SECRETS, "secrets", "get"),
]
"""All of them used from the start, by an operator that is new."""


@pytest.mark.parametrize("right", RIGHTS_FOR_SOME_NAMESPACES, ids=str)
def test_none_is_too_much_for_some_namespaces(
    right: Right, release: Access, namespace: str, etcd: EtcdServer, until: Until, tmp_path: Path
) -> None:
    install(release, etcd, watchNamespaces=[namespace])
    own = f"--namespace={RELEASE_NAMESPACE}"
    release.kubectl("delete", "secret", own, "rpcgroup-operator", "--ignore-not-found")
    try:
        with without(right, release, until), operator(release, tmp_path) as program:
            until(lambda: any(right.refusal_in(line) for line in refusals(program)))
    finally:
        install(release, etcd)


@contextlib.contextmanager
def without(right: Right, access: Access, until: Until) -> Iterator[None]:
    """The role without one verb; afterwards as it was."""
    role = roles(access)[right.role]
    del role["metadata"]["resourceVersion"]
    full = json.dumps(role)
    group = ""
    for rule in role["rules"]:
        if right.resource in rule["resources"]:
            (group,) = rule["apiGroups"]
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != right.verb]
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
    access.kubectl("replace", "--filename=-", input=json.dumps(role))
    try:
        until(lambda: not may(right, group, access))
        yield
    finally:
        access.kubectl("replace", "--filename=-", input=full)
        until(lambda: may(right, group, access))


ONLY: Final = {
    ("leases", "get"): ["rpcgroup-operator"],
    ("leases", "update"): ["rpcgroup-operator"],
    ("secrets", "get"): ["rpcgroup-operator"],
    ("namespaces", "get"): ["kube-system"],
}
"""The one object for which a right is."""


def may(right: Right, group: str, access: Access) -> bool:
    plural, _, part = right.resource.partition("/")
    resource = f"{plural}.{group}" if group else plural
    name = ONLY.get((right.resource, right.verb), [])
    account = f"--as=system:serviceaccount:{RELEASE_NAMESPACE}:{ACCOUNT}"
    where = f"--namespace={RELEASE_NAMESPACE}"
    try:
        access.kubectl(
            *("auth", "can-i", right.verb, "/".join([resource, *name]), f"--subresource={part}"),
            account,
            where,
        )
    except CommandError:
        return False
    return True
