"""An operator that starts anew looks at every group, and writes nothing where nothing has changed."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import free_port
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.random_walk import started_operator, template
from tests.cluster.simulated_workers import SimulatedWorkers

pytestmark = pytest.mark.timeout(280)

GROUPS: Final = 100
OURS: Final = ("events", "pods", "poddisruptionbudgets", "rpcgroups", "secrets")
WRITES: Final = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
REQUEST: Final = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
RECONCILES: Final = re.compile(r'^rpcgroup_reconciles_total\{result="success"\} (\S+)$', re.MULTILINE)


def test_a_resync_of_a_hundred_groups_writes_nothing(
    simulated_nodes: SimulatedNodes,
    control_plane: ControlPlane,
    access: Access,
    namespace: str,
    etcd: EtcdServer,
    workers: SimulatedWorkers,
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    port = free_port()
    with started_operator(control_plane, etcd, tmp_path, port) as operator:
        groups = "\n---\n".join(json.dumps(manifest(f"g{n}")) for n in range(GROUPS))
        access.kubectl("apply", f"--namespace={namespace}", "--filename=-", input=groups)
        until(lambda: ready(access, namespace) == GROUPS, 120)
        operator.stop()
        before = writes(access)
        operator.start()
        until(lambda: reconciles(port) >= GROUPS)
        assert writes(access) - before == Counter()


def manifest(name: str) -> dict[str, object]:
    spec = {"replicas": 1, "minReplicas": 1, "template": template("v1")}
    return {
        "apiVersion": contract.API_VERSION,
        "kind": contract.KIND,
        "metadata": {"name": name},
        "spec": spec,
    }


def ready(access: Access, namespace: str) -> int:
    """Groups with nothing left to do, and whose status says so."""
    groups = access.get("rpcgroups", f"--namespace={namespace}")["items"]
    return sum(
        {"AllReady"}
        == {c["reason"] for c in g["status"]["conditions"] if c["type"] in ("Available", "Progressing")}
        for g in groups
        if "status" in g and g["status"].get("readyReplicas") == 1
    )


def writes(access: Access) -> Counter[tuple[str, str]]:
    """Requests by verb and resource that the API server has taken and that may change something of ours."""
    counts: Counter[tuple[str, str]] = Counter()
    for labels, count in REQUEST.findall(access.kubectl("get", "--raw=/metrics")):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if of["verb"] in WRITES and of["resource"] in OURS and of["code"].startswith("2"):
            counts[of["verb"], of["resource"]] += int(float(count))
    return counts


def reconciles(port: int) -> int:
    """That have gone well, of the operator that runs now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = RECONCILES.search(answer.read().decode())
    return int(float(found[1])) if found else 0
