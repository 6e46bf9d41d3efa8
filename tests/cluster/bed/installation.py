"""The project on a cluster with real pods: its definition, an etcd for the workers, the operator as two pods."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.bed.access import Access
from tests.cluster.bed.host_python import on_this_machine

__all__ = ["NAMESPACE", "installed", "of_this_machine"]

NAMESPACE: Final = "rpcgroup-system"
DEFINITION: Final = Path(__file__).parents[3] / "manifests" / "crd.yaml"
LIVENESS_PORT: Final = 8080


@contextlib.contextmanager
def installed(access: Access, programs: Path) -> Iterator[None]:
    """The operator is available in the block, and nothing of it is left after. Raises `CommandError`."""
    access.kubectl("apply", "--server-side", f"--filename={DEFINITION}")
    access.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"--filename={DEFINITION}")
    documents = [_namespace(), *_etcd(programs), *_operator()]
    listed = {"apiVersion": "v1", "kind": "List", "items": documents}
    access.kubectl("apply", "--server-side", "--filename=-", input=json.dumps(listed))
    access.kubectl("rollout", "status", f"--namespace={NAMESPACE}", "--timeout=50s", "deployment/etcd")
    access.kubectl("rollout", "status", f"--namespace={NAMESPACE}", "--timeout=50s", "deployment/operator")
    try:
        yield
    finally:
        access.kubectl("delete", "clusterrolebinding", "rpcgroup-operator")
        access.kubectl("delete", "namespace", NAMESPACE, "--timeout=50s")


def of_this_machine(manifest: Path) -> dict[str, Any]:
    """A group's manifest, its workers changed to run this machine's Python."""
    group: dict[str, Any] = yaml.safe_load(manifest.read_text())
    for role in (group["spec"], *group["spec"].get("roles", [])):
        role["template"]["spec"] = on_this_machine(role["template"]["spec"])
    return group


def _namespace() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def _etcd(programs: Path) -> list[dict[str, Any]]:
    command = [
        str(programs / "etcd"),
        "--data-dir=/tmp/etcd",
        "--listen-client-urls=http://0.0.0.0:2379",
        f"--advertise-client-urls=http://etcd.{NAMESPACE}.svc:2379",
    ]
    probe = {"httpGet": {"path": "/health", "port": 2379}, "periodSeconds": 1}
    container = {"name": "etcd", "command": command, "readinessProbe": probe}
    service = {"selector": {"app": "etcd"}, "ports": [{"port": 2379}]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": _metadata("etcd"), "spec": service},
        _deployment("etcd", 1, on_this_machine({"containers": [container]}, programs)),
    ]


def _operator() -> list[dict[str, Any]]:
    address = f"etcd.{NAMESPACE}.svc:2379"
    command = ["python", "-m", "rpcgroup_operator", "--etcd", address, "--liveness-port", str(LIVENESS_PORT)]
    probe = {"httpGet": {"path": "/healthz", "port": LIVENESS_PORT}, "periodSeconds": 1}
    name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    container = {"name": "operator", "command": command, "readinessProbe": probe, "env": [name]}
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": NAMESPACE}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata("operator")},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "rpcgroup-operator"},
            "roleRef": role,
            "subjects": [subject],
        },
        _deployment(
            "operator", 2, on_this_machine({"serviceAccountName": "operator", "containers": [container]})
        ),
    ]


def _deployment(name: str, replicas: int, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name),
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": NAMESPACE}
