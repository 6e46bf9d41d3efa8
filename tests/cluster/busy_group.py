"""A group of `busy_worker`s as real pods: what they saw, and ways to hurt them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rpcgroup import contract
from tests.cluster.bed.access import Access
from tests.cluster.bed.host_python import host_python

__all__ = ["BusyGroup", "processes"]

START_SECONDS: Final = 180.0
"""Each process imports torch, on the two cores of a small machine."""

Until = Callable[..., None]


class BusyGroup:
    """The group `busy` in one namespace."""

    def __init__(self, access: Access, namespace: str, until: Until, replicas: int) -> None:
        self._access = access
        self._here = f"--namespace={namespace}"
        self._until = until
        self._replicas = replicas

    def start(self) -> None:
        """Returns when every worker calls every other."""
        manifest = {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": "busy"},
            "spec": {
                "replicas": self._replicas,
                "backoffLimit": 1000,
                "template": {"spec": host_python("-m", "tests.cluster.busy_worker")},
            },
        }
        self.kubectl("apply", "--server-side", "--filename=-", input=json.dumps(manifest))
        self.settle()

    def settle(self) -> None:
        self._until(self._is_busy, START_SECONDS)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self._access.kubectl(self._here, *arguments, input=input)

    def pods(self) -> dict[str, Any]:
        """By name."""
        items = self._access.get(self._here, "pods", f"--selector={contract.LABEL_GROUP}=busy")["items"]
        return {pod["metadata"]["name"]: pod for pod in items}

    def seen(self, name: str) -> list[dict[str, Any]]:
        """What that worker has written."""
        lines = self.kubectl("logs", name, "--ignore-errors").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def incarnations(self) -> dict[str, int]:
        """Of the workers that are there, as each says of itself."""
        return {name: of_kind(self.seen(name), "calls")[-1]["incarnation"] for name in self.pods()}

    def kill(self, name: str) -> float:
        """End its worker as a crash does; the unix time of that."""
        found = processes(self.pods()[name]["metadata"]["uid"])
        began = time.time()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return began

    def _is_busy(self) -> bool:
        pods = self.pods()
        if len(pods) != self._replicas or not all(is_ready(pod) for pod in pods.values()):
            return False
        for name in pods:
            calls = of_kind(self.seen(name), "calls")
            if not calls or not pods.keys() - {name} <= calls[-1]["to"].keys():
                return False
        return True


def of_kind(seen: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [line for line in seen if line["what"] in kinds]


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def processes(pod_uid: str) -> list[int]:
    """The processes of a pod's containers, as this machine numbers them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            of_pod = f"pod{pod_uid}" in (path / "cgroup").read_text()
            if of_pod and (path / "comm").read_text() != "pause\n":
                found.append(int(path.name))
        except OSError:
            continue  # it has ended meanwhile
    return found
