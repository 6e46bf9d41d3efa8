"""Where things are in the Kubernetes API."""

from __future__ import annotations

from typing import Final

from rpcgroup.contract import API_VERSION, PLURAL

__all__ = [
    "ALL_GROUPS",
    "ALL_PODS",
    "budget",
    "events",
    "group",
    "group_if_any",
    "groups",
    "lease",
    "leases",
    "namespace",
    "pod",
    "pods",
    "secret",
    "secrets",
]

ALL_GROUPS: Final = f"/apis/{API_VERSION}/{PLURAL}"
ALL_PODS: Final = "/api/v1/pods"


def group(namespace: str, name: str) -> str:
    return f"{groups(namespace)}/{name}"


def group_if_any(namespace: str, name: str) -> str:
    """A list of one or none, for which the right to list is enough."""
    return f"{groups(namespace)}?fieldSelector=metadata.name%3D{name}"


def groups(namespace: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}"


def pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def pod(namespace: str, name: str) -> str:
    return f"{pods(namespace)}/{name}"


def namespace(name: str) -> str:
    return f"/api/v1/namespaces/{name}"


def secret(namespace: str, name: str) -> str:
    return f"{secrets(namespace)}/{name}"


def secrets(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets"


def budget(namespace: str, name: str) -> str:
    return f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{name}"


def leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def lease(namespace: str, name: str) -> str:
    return f"{leases(namespace)}/{name}"


def events(namespace: str) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
