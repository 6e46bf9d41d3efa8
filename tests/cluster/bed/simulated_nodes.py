"""Nodes that run nothing: kwok reports their pods as running, as failed, as gone (`stages.yaml`)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import free_port

__all__ = ["FAIL_AFTER", "FINISH_AFTER", "GONE_AFTER", "READY_AFTER", "SimulatedNodes"]

# Annotations of a pod; the values are durations as `1.5s`. stages.yaml acts on them.
READY_AFTER: Final = "kwok.rpcgroup.dev/ready-after"
"""From its binding to a node until it is Running and Ready; at once without it."""
FAIL_AFTER: Final = "kwok.rpcgroup.dev/fail-after"
"""From Running until it is Failed with exit code 1; never without it."""
FINISH_AFTER: Final = "kwok.rpcgroup.dev/finish-after"
"""From Running until it is Succeeded; never without it."""
GONE_AFTER: Final = "kwok.rpcgroup.dev/gone-after"
"""From its deletion until it is gone, as a container takes that handles SIGTERM; at once without it."""

STAGES: Final = Path(__file__).with_name("stages.yaml")
MANAGED: Final = "kwok.rpcgroup.dev/node"
CAPACITY: Final = {"cpu": "64", "memory": "512Gi", "pods": "2000", "nvidia.com/gpu": "8"}


class SimulatedNodes:
    """kwok and its nodes on a control plane that runs; a context manager."""

    def __init__(self, plane: ControlPlane, count: int = 3) -> None:
        self._plane = plane
        self.names = [f"simulated-{index}" for index in range(count)]
        port = free_port()
        self.kwok = plane.program(
            "kwok",
            f"--kubeconfig={plane.kubeconfig_of('kwok')}",
            f"--config={STAGES}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={MANAGED}=simulated",
            "--node-lease-duration-seconds=40",
            f"--server-address=127.0.0.1:{port}",
            health=f"http://127.0.0.1:{port}/healthz",
            env={"HOME": str(plane.folder)},  # it writes into ~/.kwok
        )

    def start(self) -> None:
        """Returns when the nodes are Ready. Raises `StartError` or `CommandError`; then kwok does not run."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.kwok.stop)
            self.kwok.start()
            nodes = {"apiVersion": "v1", "kind": "List", "items": [_node(name) for name in self.names]}
            self._plane.access.kubectl("create", "--filename=-", input=json.dumps(nodes))
            named = [f"node/{name}" for name in self.names]
            self._plane.access.kubectl("wait", "--for=condition=Ready", "--timeout=30s", *named)
            undo.pop_all()

    def stop(self) -> None:
        """The nodes are gone too: later pods stay Pending."""
        try:
            self._plane.access.kubectl("delete", "--ignore-not-found", "node", *self.names)
        finally:
            self.kwok.stop()

    def __enter__(self) -> SimulatedNodes:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _node(name: str) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {MANAGED: "simulated"}, "labels": labels},
        "status": {"allocatable": CAPACITY, "capacity": CAPACITY},
    }
