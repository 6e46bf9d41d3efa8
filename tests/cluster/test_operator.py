"""The operator on a real API server with simulated nodes: what it is asked for happens, and nothing else."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import RANGE, RangeRequest, prefix_end
from tests.cluster.bed.access import Access
from tests.cluster.bed.process import Program, free_port
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.simulated_workers import SimulatedWorkers

ROUNDS = int(os.environ.get("RPCGROUP_CLUSTER_ROUNDS", "1"))
"""The project's own figures are of 10: 200 steps and 50 kills."""
STEPS = 20
KILLS = 5
CRD = Path(__file__).parents[2] / "manifests" / "crd.yaml"
pytestmark = pytest.mark.timeout(280)

Until = Callable[..., None]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Where the workers meet."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="module")
def operator(
    simulated_nodes: SimulatedNodes,
    control_plane: Any,
    etcd: EtcdServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Program]:
    control_plane.access.kubectl("apply", "--server-side", "--filename", str(CRD))
    control_plane.access.kubectl("wait", "--for=condition=Established", "crd/rpcgroups.rpcgroup.dev")
    port = free_port()

    def answers() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as response:
            return bool(response.status == 200)

    program = Program(
        "operator",
        [
            *(sys.executable, "-m", "rpcgroup_operator", "--etcd", etcd.endpoint),
            *("--liveness-port", str(port), "--metrics-port", str(free_port())),
            *("--lease-namespace", "default"),
        ],
        tmp_path_factory.mktemp("operator") / "operator.log",
        lambda: _true(answers),
        env={"KUBECONFIG": str(control_plane.access.kubeconfig), "POD_NAME": "operator-0"},
    )
    program.start()
    try:
        yield program
    finally:
        program.stop()


@pytest.fixture
def workers(access: Access, namespace: str, etcd: EtcdServer) -> Iterator[SimulatedWorkers]:
    with access.client() as api, SimulatedWorkers(api, namespace, etcd.endpoint) as simulated:
        yield simulated


class Group:
    """The group `g` of a test, as a user handles it."""

    def __init__(self, access: Access, namespace: str, until: Until) -> None:
        self._access = access
        self._in = f"--namespace={namespace}"
        self._until = until
        self.spec: dict[str, Any] = {"replicas": 3, "minReplicas": 1, "template": template("v1")}

    def apply(self, **changes: Any) -> None:
        self.spec.update(changes)
        manifest = {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": "g"},
            "spec": self.spec,
        }
        self._access.kubectl("apply", self._in, "--filename=-", input=json.dumps(manifest))

    def scale(self, replicas: int) -> None:
        self.spec["replicas"] = replicas
        self._access.kubectl("scale", self._in, "rpcgroup/g", f"--replicas={replicas}")

    def kill(self, name: str) -> None:
        self._access.kubectl("delete", "pod", name, self._in, "--grace-period=0", "--force")

    def delete(self) -> None:
        self._access.kubectl("delete", "rpcgroup/g", self._in)

    def pods(self) -> dict[str, Any]:
        """By UID."""
        found = self._access.get("pods", self._in, f"--selector={contract.LABEL_GROUP}=g")["items"]
        return {pod["metadata"]["uid"]: pod for pod in found}

    def status(self) -> dict[str, Any]:
        group = self._access.get("rpcgroup", "g", self._in)
        return {**group.get("status", {}), "generation": group["metadata"]["generation"]}

    def settle(self) -> set[str]:
        """Wait until the group is as it was asked for; the UIDs of its pods then."""
        self._until(self.is_settled)
        return set(self.pods())

    def is_settled(self) -> bool:
        wanted, status, pods = self.spec["replicas"], self.status(), self.pods().values()
        hashes = {pod["metadata"]["labels"][contract.LABEL_TEMPLATE_HASH] for pod in pods}
        return (
            status.get("observedGeneration") == status["generation"]
            and (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (wanted,) * 3
            and len(pods) == wanted
            and len(hashes) == min(1, wanted)
            and all(has_joined(pod) for pod in pods)
        )


@pytest.fixture
def group(access: Access, namespace: str, until: Until, operator: Program) -> Group:
    return Group(access, namespace, until)


def test_a_group_comes_scales_and_goes(
    group: Group, workers: SimulatedWorkers, access: Access, namespace: str, etcd: EtcdServer, until: Until
) -> None:
    group.apply()
    three = group.settle()
    group.scale(5)
    assert three < group.settle()
    group.scale(2)
    assert len(group.settle() & three) == 2, "the youngest left"
    assert workers.not_deregistered == []
    group.delete()
    until(lambda: not group.pods())
    prefix = contract.group_prefix(namespace, "g").encode()
    with closing(EtcdClient([etcd.endpoint])) as client:
        until(lambda: client.call(RANGE, RangeRequest(prefix, prefix_end(prefix))).kvs == [])
    until(lambda: not access.get("secret,poddisruptionbudget", f"--namespace={namespace}")["items"])


def test_a_worker_that_dies_is_replaced_and_nobody_else_is_touched(
    group: Group, workers: SimulatedWorkers
) -> None:
    group.apply()
    before = group.settle()
    group.kill("g-worker-1")
    after = group.settle()
    assert len(before & after) == 2


def test_a_new_template_replaces_all(group: Group, workers: SimulatedWorkers) -> None:
    group.apply()
    before = group.settle()
    group.apply(template=template("v2"))
    assert not before & group.settle()
    assert workers.not_deregistered == []


@pytest.mark.parametrize("number", range(ROUNDS))
def test_random_steps(group: Group, workers: SimulatedWorkers, number: int) -> None:
    walk(group, workers, STEPS)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_random_steps_while_the_operator_is_killed(
    group: Group, workers: SimulatedWorkers, operator: Program, number: int
) -> None:
    dice = random.Random()

    def kill() -> None:
        threading.Event().wait(dice.random())  # a random moment of the work is what is meant
        operator.kill()
        operator.start()

    walk(group, workers, KILLS, kill)


def walk(
    group: Group, workers: SimulatedWorkers, steps: int, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Of every step the survivors are known; who went beside those was deleted without a reason."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {steps} steps")
    dice = random.Random(seed)
    group.apply()
    before = group.settle()
    for step in range(steps):
        kind, survivors, meant = change(group, dice, f"step-{step}")
        meanwhile()
        after = group.settle()
        assert len(before & after) == survivors, (seed, step, kind)
        assert not meant & after, (seed, step, kind)
        assert workers.not_deregistered == [], (seed, step, kind)
        before = after


def change(group: Group, dice: random.Random, version: str) -> tuple[str, int, set[str]]:
    """One random change: its kind, how many of the pods will be left, and which will surely go."""
    uids = {pod["metadata"]["name"]: uid for uid, pod in group.pods().items()}
    least, count = group.spec["minReplicas"], len(uids)
    kind = dice.choice(["scale", "scale", "named", "kill", "template"])
    victim = dice.choice(sorted(uids))
    if kind == "template":
        group.apply(template=template(version))
        return kind, 0, set(uids.values())
    if kind == "kill":
        group.kill(victim)
        return kind, count - 1, {uids[victim]}
    if kind == "named" and count > least:
        group.apply(replicas=count - 1, scaleStrategy={"workersToDelete": [victim]})
        return kind, count - 1, {uids[victim]}
    wanted = dice.randint(least, 6)
    group.scale(wanted)
    return "scale", min(wanted, count), set()


def template(version: str) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "env": [{"name": "VERSION", "value": version}]}
    return {"spec": {"containers": [container]}}


def has_joined(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == contract.READINESS_GATE and c["status"] == "True" for c in conditions)


def _true(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:
        return False
