"""Real pods: they run, find each other and the API, and end as pods do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.bed.host_python import host_python
from tests.cluster.bed.real_cluster import RealCluster

Until = Callable[..., None]

ASK_THE_API = """
import ssl, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
token = open(account + "token").read()
request = urllib.request.Request("https://kubernetes.default.svc/api", headers={"Authorization": "Bearer " + token})
context = ssl.create_default_context(cafile=account + "ca.crt")
print(urllib.request.urlopen(request, timeout=10, context=context).status)
"""
LISTEN = """
import socket
with socket.create_server(("", 7000)) as server:
    while True:
        server.accept()[0].close()
"""
CONNECT = """
import socket, sys, time
deadline = time.monotonic() + 20
while True:
    try:
        print(socket.create_connection((sys.argv[1], 7000), timeout=5).getpeername()[0])
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
"""
END_WITH_SEVEN = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("waiting", flush=True)
signal.pause()
"""


class Pods:
    """Pods of one namespace that run this machine's Python."""

    def __init__(self, cluster: RealCluster, namespace: str) -> None:
        self._access = cluster.access
        self._namespace = f"--namespace={namespace}"

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return self._access.kubectl(self._namespace, *arguments, input=input)

    def create(self, name: str, *python: str, labels: dict[str, str] | None = None, **spec: Any) -> None:
        """`python` is what follows the interpreter's name."""
        metadata = {"name": name, "labels": labels or {}}
        whole = {**host_python(*python), "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, **spec}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole}
        self.kubectl("create", "--filename=-", input=json.dumps(document))

    def wait(self, name: str, *, phase: str) -> None:
        self.kubectl("wait", f"pod/{name}", f"--for=jsonpath={{.status.phase}}={phase}", "--timeout=45s")

    def status(self, name: str) -> Any:
        return self._access.get(self._namespace, f"pod/{name}")["status"]


@pytest.fixture
def pods(real_cluster: RealCluster, real_namespace: str) -> Pods:
    return Pods(real_cluster, real_namespace)


def test_a_pod_imports_the_worker_and_asks_the_api_by_its_service(pods: Pods) -> None:
    pods.create("asks", "-c", "import rpcgroup\n" + ASK_THE_API)
    pods.wait("asks", phase="Succeeded")
    assert pods.kubectl("logs", "asks") == "200\n"


def test_pods_have_names_and_reach_each_other(pods: Pods, real_cluster: RealCluster) -> None:
    service = {"clusterIP": "None", "selector": {"of": "peers"}, "publishNotReadyAddresses": True}
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers"}, "spec": service}
    pods.kubectl("create", "--filename=-", input=json.dumps(document))
    pods.create("b", "-c", LISTEN, labels={"of": "peers"}, hostname="b", subdomain="peers")
    pods.wait("b", phase="Running")
    address = pods.status("b")["podIP"]
    pods.create("a", "-c", CONNECT, "b.peers")
    pods.wait("a", phase="Succeeded")
    assert pods.kubectl("logs", "a") == f"{address}\n"
    connect = real_cluster.inside("python3", "-c", CONNECT, address)
    assert subprocess.run(connect, capture_output=True, text=True, check=True).stdout == f"{address}\n"


def test_a_pod_that_is_deleted_gets_sigterm(pods: Pods, until: Until) -> None:
    pods.create("ends", "-c", END_WITH_SEVEN)
    until(lambda: "waiting" in pods.kubectl("logs", "ends", "--ignore-errors"))
    pods.kubectl(
        "patch", "pod", "ends", "--type=merge", '--patch={"metadata":{"finalizers":["rpcgroup.test/see"]}}'
    )
    pods.kubectl("delete", "pod", "ends", "--wait=false")
    pods.wait("ends", phase="Failed")
    assert pods.status("ends")["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
    pods.kubectl("patch", "pod", "ends", "--type=merge", '--patch={"metadata":{"finalizers":null}}')


def test_what_a_killed_cluster_leaves(programs: Path, tmp_path: Path, until: Until) -> None:
    cluster = RealCluster(tmp_path, programs)
    cluster.start()
    try:
        pods = Pods(cluster, "default")
        pods.create("runs", "-c", LISTEN, serviceAccountName="default")
        pods.wait("runs", phase="Running")
        assert len(_processes_of(tmp_path)) >= 8
    finally:
        cluster.kill()
    until(lambda: _processes_of(tmp_path) == [])
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def _processes_of(folder: Path) -> list[str]:
    """The command lines that name it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            lines.append(line)
    return lines
