"""Groups with TLS: their certificates on a real API server, and workers in real pods that use them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rpcgroup import contract
from rpcgroup.control.certificates import Authority, Files
from rpcgroup.transport.credentials import TlsCredentials, TlsFiles
from tests.cluster.bed.access import Access
from tests.cluster.bed.host_python import host_python
from tests.cluster.bed.real_cluster import RealCluster
from tests.cluster.random_walk import Group
from tests.cluster.simulated_workers import SimulatedWorkers

Until = Callable[..., None]


def entries(access: Access, namespace: str, secret: str) -> dict[str, bytes]:
    data = access.get("secret", secret, f"--namespace={namespace}")["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


def names_of(access: Access, namespace: str) -> tuple[str, str]:
    """The Secrets of the group `g`: its authority's, its workers'."""
    uid = access.get("rpcgroup/g", f"--namespace={namespace}")["metadata"]["uid"][:8]
    return f"g-rpcgroup-ca-{uid}", f"g-rpcgroup-tls-{uid}"


def test_what_a_pod_mounts_lets_it_meet_the_others(
    group: Group,
    workers: SimulatedWorkers,
    access: Access,
    namespace: str,
    until: Until,
    tmp_path: Path,
) -> None:
    group.apply(replicas=2, security={"tls": True})
    group.settle()
    authority, files = names_of(access, namespace)
    for pod in group.pods().values():
        (container,) = pod["spec"]["containers"]
        env = {variable["name"]: variable.get("value", "") for variable in container["env"]}
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "rpcgroup-secret"]
        mounted = [source["secret"]["name"] for source in volume["projected"]["sources"]]
        assert files in mounted
        assert authority not in mounted
        named = [
            env[contract.ENV_TLS_CA_FILE],
            env[contract.ENV_TLS_CERT_FILE],
            env[contract.ENV_TLS_KEY_FILE],
        ]
        for path in named:
            key = Path(path).name
            (tmp_path / key).write_bytes(entries(access, namespace, files)[key])
        found = TlsFiles(*(tmp_path / Path(path).name for path in named))
        TlsCredentials(found, contract.tls_name(namespace, "g"))
    group.delete()
    until(lambda: not access.get("secret", f"--namespace={namespace}")["items"])


CALLER = """
import os, time
import rpcgroup as rpc

def nothing():
    return 1

def authorities():
    with open(os.environ["RPCGROUP_TLS_CA_FILE"]) as file:
        return file.read().count("BEGIN")

group = rpc.init_rpc()
while True:  # until it is drained; a call that fails ends it
    others = [m.name for m in group.members() if m.name != group.name]
    for name in others:
        rpc.rpc_sync(name, nothing)
    print(
        *("scheme", group.me.address.partition(":")[0], "called", len(others)),
        *("authorities", authorities()),
        flush=True,
    )
    time.sleep(0.5)
"""


class Workers:
    """The group `g` as real pods."""

    def __init__(self, access: Access, namespace: str) -> None:
        self._access, self._namespace = access, namespace
        self._in = f"--namespace={namespace}"

    def apply(self) -> None:
        spec: dict[str, Any] = {
            "replicas": 2,
            "security": {"tls": True},
            "template": {"spec": host_python("-c", CALLER)},
        }
        manifest = {
            "apiVersion": contract.API_VERSION,
            "kind": contract.KIND,
            "metadata": {"name": "g"},
            "spec": spec,
        }
        self._access.kubectl("apply", self._in, "--filename=-", input=json.dumps(manifest))

    def scale(self, replicas: int) -> None:
        self._access.kubectl("scale", self._in, "rpcgroup/g", f"--replicas={replicas}")

    def pods(self) -> dict[str, str]:
        """UIDs by name."""
        found = self._access.get("pods", self._in, f"--selector={contract.LABEL_GROUP}=g")["items"]
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}

    def say(self, replicas: int, text: str) -> bool:
        """Whether that is in the last line of all of them."""
        logs = [
            self._access.kubectl("logs", self._in, f"g-worker-{n}", "--tail=1")
            for n in range(len(self.pods()))
        ]
        return len(logs) == replicas and all(f"{text} " in log.replace("\n", " ") for log in logs)

    def ready(self) -> int:
        shown: int = self._access.get("rpcgroup/g", self._in).get("status", {}).get("readyReplicas", 0)
        return shown

    def publish(self, authorities: list[Authority], files: Files) -> None:
        """As the operator does it, in the same order."""
        ca, tls = names_of(self._access, self._namespace)
        certificates, keys = zip(
            *((a.certificate.decode(), a.key.decode()) for a in authorities), strict=True
        )
        self._patch(ca, {"ca.crt": "".join(certificates), "ca.key": "".join(keys)})
        shown = {"ca.crt": files.bundle, "tls.crt": files.certificate, "tls.key": files.key}
        self._patch(tls, {key: value.decode() for key, value in shown.items()})

    def authority(self) -> Authority:
        content = entries(self._access, self._namespace, names_of(self._access, self._namespace)[0])
        return Authority(content["ca.crt"], content["ca.key"])

    def _patch(self, secret: str, content: dict[str, str]) -> None:
        patch = json.dumps({"stringData": content})
        self._access.kubectl("patch", "secret", secret, self._in, "--type=merge", f"--patch={patch}")


@pytest.mark.timeout(900)
def test_real_workers_go_on_through_a_change_of_the_authority(
    operator_pods: RealCluster, real_namespace: str, until: Until
) -> None:
    """The kubelet renews their files; nobody restarts, and who comes later is known to all."""
    workers = Workers(operator_pods.access, real_namespace)
    workers.apply()
    until(lambda: workers.ready() == 2, 180)
    until(lambda: workers.say(2, "scheme tls called 1 authorities 1"), 60)
    before = workers.pods()
    old, new = workers.authority(), Authority.new(time.time())
    both, name = old.certificate + new.certificate, contract.tls_name(real_namespace, "g")
    workers.publish([old, new], old.sign(name, both, time.time()))
    until(lambda: workers.say(2, "authorities 2"), 180)
    last = new.sign(name, both, time.time())
    workers.publish([old, new], last)
    workers.scale(3)
    until(lambda: workers.ready() == 3, 180)
    until(lambda: workers.say(3, "called 2"), 60)
    assert before.items() <= workers.pods().items()
    operator_pods.access.kubectl("delete", "rpcgroup/g", f"--namespace={real_namespace}")
    until(lambda: not workers.pods(), 120)
