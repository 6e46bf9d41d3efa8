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
POLL_SECONDS: Final = 0.3


class BusyGroup:
    """The group `busy` in one namespace."""

    def __init__(self, access: Access, namespace: str, replicas: int) -> None:
        self._access = access
        self.namespace = namespace
        self._here = f"--namespace={namespace}"
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
        """Wait for that."""
        until(self._is_busy, "every worker calls every other", START_SECONDS)

    def wait_for_calls(self) -> None:
        """Until everybody has told of calls after this moment."""
        began = time.time()

        def told() -> bool:
            return all(of_kind(self.seen(name), "calls")[-1]["at"] > began for name in self.pods())

        until(told, "every worker tells of its calls", START_SECONDS)

    def lives(self) -> dict[str, tuple[str, str, int, int]]:
        """Of each worker what is another one after any restart: pod, container, count of restarts, incarnation."""
        incarnations = self.incarnations()
        return {name: (*run_of(pod), incarnations[name]) for name, pod in self.pods().items()}

    def lost(self, victim: str, incarnation: int, witnesses: list[str], seconds: float) -> float:
        """The unix time at which the last witness's view had lost that worker."""
        times: dict[str, float] = {}

        def all_saw() -> bool:
            for name in witnesses:
                for line in of_kind(self.seen(name), "died", "left"):
                    if (line["who"], line["incarnation"]) == (victim, incarnation):
                        times[name] = line["at"]
            return len(times) == len(witnesses)

        until(all_saw, f"{victim} is gone for {witnesses}", seconds)
        return max(times.values())

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


def run_of(pod: dict[str, Any]) -> tuple[str, str, int]:
    container = pod["status"]["containerStatuses"][0]
    return pod["metadata"]["uid"], container["containerID"], container["restartCount"]


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s it is not true that {what}")
        time.sleep(POLL_SECONDS)


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
