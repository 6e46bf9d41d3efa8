"""A HorizontalPodAutoscaler moves a group by its scale subresource, and the group drains whom it gives up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from rpcgroup import contract
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.metrics_api import MetricsApi
from tests.cluster.random_walk import Group
from tests.cluster.simulated_workers import SimulatedWorkers

pytestmark = pytest.mark.timeout(280)

Until = Callable[..., None]
DECISION_SECONDS: Final = 120.0
"""The controllers learn of a new kind within 30 s, of a pod's first sample some seconds after it is Ready."""
TARGET_MILLICORES: Final = 300


@pytest.fixture
def metrics(control_plane: ControlPlane) -> Iterator[MetricsApi]:
    with MetricsApi(control_plane) as api:
        yield api


def autoscaler(most: int) -> dict[str, Any]:
    cpu = {"name": "cpu", "target": {"type": "AverageValue", "averageValue": f"{TARGET_MILLICORES}m"}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "g"},
        "spec": {
            "scaleTargetRef": {"apiVersion": contract.API_VERSION, "kind": contract.KIND, "name": "g"},
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [{"type": "Resource", "resource": cpu}],
        },
    }


def test_it_scales_a_group_out_and_drains_it_in(
    group: Group,
    workers: SimulatedWorkers,
    metrics: MetricsApi,
    access: Access,
    namespace: str,
    until: Until,
) -> None:
    group.apply(replicas=1, maxReplicas=5)
    first = group.settle()
    access.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=json.dumps(autoscaler(5)))

    def follow(replicas: int) -> set[str]:
        """The autoscaler decides by itself; the group then does as it was told."""
        metrics.load_millicores = replicas * TARGET_MILLICORES
        until(
            lambda: access.get("rpcgroup/g", f"--namespace={namespace}")["spec"]["replicas"] == replicas,
            DECISION_SECONDS,
        )
        group.spec["replicas"] = replicas
        return group.settle()

    three = follow(3)
    assert first < three
    assert follow(1) == first, "the youngest leave"
    until(lambda: set(workers.drained) == three - first)
    assert set(workers.gone) == set(workers.drained), "whoever went was drained first"
