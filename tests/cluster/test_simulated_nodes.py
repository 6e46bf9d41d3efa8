"""Simulated nodes run pods in appearance, and the pods' annotations say how."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.bed.access import Access
from tests.cluster.bed.simulated_nodes import FAIL_AFTER, FINISH_AFTER, GONE_AFTER, READY_AFTER

pytestmark = pytest.mark.usefixtures("simulated_nodes")
Until = Callable[..., None]


def pod(name: str, annotations: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": "none.invalid/none:1"}]},
    }


class Pods:
    """The pods of one namespace."""

    def __init__(self, access: Access, namespace: str) -> None:
        self._access = access
        self._namespace = f"--namespace={namespace}"

    def create(self, *pods: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": pods}
        self._access.kubectl("create", self._namespace, "--filename=-", input=json.dumps(listed))

    def phases(self) -> dict[str, str]:
        items = self._access.get(self._namespace, "pods")["items"]
        return {item["metadata"]["name"]: item["status"]["phase"] for item in items}

    def status(self, name: str) -> Any:
        return self._access.get(self._namespace, f"pod/{name}")["status"]

    def delete(self, *names: str) -> None:
        self._access.kubectl("delete", self._namespace, "pod", "--wait=false", *names)


@pytest.fixture
def pods(access: Access, namespace: str) -> Pods:
    return Pods(access, namespace)


def test_fifty_pods_run_and_go(pods: Pods, until: Until) -> None:
    names = [f"pod-{index}" for index in range(50)]
    pods.create(*(pod(name, {}) for name in names))
    until(lambda: pods.phases() == dict.fromkeys(names, "Running"))
    status = pods.status("pod-0")
    assert {condition["type"]: condition["status"] for condition in status["conditions"]}["Ready"] == "True"
    assert status["podIP"] and status["containerStatuses"][0]["ready"]
    pods.delete(*names)
    until(lambda: pods.phases() == {})


def test_pods_fail_and_finish_as_they_are_told(pods: Pods, until: Until) -> None:
    pods.create(
        pod("plain", {}), pod("failing", {FAIL_AFTER: "100ms"}), pod("ending", {FINISH_AFTER: "100ms"})
    )
    until(lambda: pods.phases() == {"plain": "Running", "failing": "Failed", "ending": "Succeeded"})
    codes = {
        name: pods.status(name)["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        for name in ("failing", "ending")
    }
    assert codes == {"failing": 1, "ending": 0}


def test_a_slow_start_and_a_slow_end(pods: Pods, until: Until) -> None:
    """An hour is longer than any test: what should wait for it is still as it was when the other is done."""
    pods.create(pod("quick", {}), pod("slow", {READY_AFTER: "1h"}))
    until(lambda: pods.phases() == {"quick": "Running", "slow": "Pending"})
    pods.delete("slow")
    pods.create(pod("lingering", {GONE_AFTER: "1h"}))
    until(lambda: pods.phases() == {"quick": "Running", "lingering": "Running"})
    pods.delete("quick", "lingering")
    until(lambda: pods.phases() == {"lingering": "Running"})
