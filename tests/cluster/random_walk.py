"""A group as a user handles it, an operator for it, and random walks over what users do."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program, answers, free_port
from tests.cluster.simulated_workers import SimulatedWorkers

__all__ = ["KILLS", "ROUNDS", "STEPS", "Group", "started_operator", "template", "walk"]

ROUNDS: Final = int(os.environ.get("RPCGROUP_CLUSTER_ROUNDS", "1"))
"""The project's own figures are of 10: 200 steps and 50 kills."""
STEPS: Final = 20
KILLS: Final = 5
CRD: Final = Path(__file__).parents[2] / "manifests" / "crd.yaml"

Until = Callable[..., None]


@contextmanager
def started_operator(
    plane: ControlPlane, etcd: EtcdServer, folder: Path, metrics_port: int = 0, name: str = "operator-0"
) -> Iterator[Program]:
    """The operator as a process, with the rights of the administrator, and the definition installed."""
    plane.access.kubectl("apply", "--server-side", "--filename", str(CRD))
    plane.access.kubectl("wait", "--for=condition=Established", "crd/rpcgroups.rpcgroup.dev")
    port = free_port()

    program = Program(
        name,
        [
            *(sys.executable, "-m", "rpcgroup_operator", "--etcd", etcd.endpoint),
            *("--liveness-port", str(port), "--metrics-port", str(metrics_port or free_port())),
            *("--lease-namespace", "default"),
        ],
        folder / f"{name}.log",
        lambda: answers(f"http://127.0.0.1:{port}/healthz"),
        env={"KUBECONFIG": str(plane.access.kubeconfig), "POD_NAME": name},
    )
    program.start()
    try:
        yield program
    finally:
        program.stop()


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
