"""From the plan's words to Kubernetes objects. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rpcgroup import contract
from rpcgroup.control.certificates import Authority, Files
from rpcgroup.control.compat import compat_environment
from rpcgroup.control.device_maps import device_maps_environment
from rpcgroup.control.model import PodTemplate, RPCGroup
from rpcgroup.control.plan import Create

__all__ = [
    "Rendezvous",
    "authority_secret",
    "authority_secret_name",
    "budget_name",
    "disruption_budget",
    "drain_mark",
    "etcd_secret",
    "etcd_secret_name",
    "is_owned",
    "pod",
    "pod_labels",
    "secret",
    "secret_name",
    "selector",
    "template_hash",
    "tls_secret",
    "tls_secret_name",
]

Object = dict[str, Any]

SECRET_KEY = "secret"
ETCD_PASSWORD_KEY = "etcd-password"
ETCD_CA_KEY = "etcd-ca.crt"
CA_KEY = "ca.crt"
CA_PRIVATE_KEY = "ca.key"
TLS_CERT_KEY = "tls.crt"
TLS_PRIVATE_KEY = "tls.key"
SECRET_MOUNT = "/var/run/secrets/rpcgroup.dev"
VOLUME = "rpcgroup-secret"
# The files are root's, and the container runs as whoever its image or template says.
SECRET_MODE = 0o444


@dataclass(frozen=True)
class Rendezvous:
    """Where the workers find etcd, `HOST:PORT[,HOST:PORT...]`, and what they need to get in."""

    endpoints: str
    users: bool = False
    """Each group has its own."""
    ca: bool = False
    """etcd speaks TLS, and this says which etcd is the right one."""

    def url(self, group: RPCGroup) -> str:
        return f"etcd://{self.endpoints}/{group.metadata.namespace}/{group.metadata.name}"


def template_hash(template: PodTemplate) -> str:
    """Of the template as it was written: what a webhook adds to a pod starts no rollout."""
    return hashlib.sha256(json.dumps(as_written(template), sort_keys=True).encode()).hexdigest()[:10]


def as_written(template: PodTemplate) -> Object:
    """A new copy each time."""
    return template.model_dump(mode="json", by_alias=True, exclude_unset=True)


def pod(group: RPCGroup, owner_uid: str, create: Create, rendezvous: Rendezvous, failures: int = 0) -> Object:
    """The pod for a place in the group. What the template says stands; only what the worker needs is added."""
    template = group.roles()[create.role][1]
    rendered = as_written(template)
    spec: Object = rendered["spec"]
    written: Object = rendered.get("metadata") or {}
    annotations = dict(written.get("annotations") or {})
    if failures:
        annotations[contract.ANNOTATION_FAILURES] = str(failures)
    labels = {
        **(written.get("labels") or {}),
        **pod_labels(group, create.role),
        contract.LABEL_INDEX: str(create.index),
        contract.LABEL_TEMPLATE_HASH: template_hash(template),
    }
    finalizers = {"finalizers": written["finalizers"]} if "finalizers" in written else {}
    spec.setdefault("restartPolicy", "Never")
    spec.setdefault("hostname", create.name)
    gates = spec.setdefault("readinessGates", [])
    gates.append({"conditionType": contract.READINESS_GATE})
    sources = [{"secret": {"name": name}} for name in secret_names(group, owner_uid, rendezvous)]
    spec.setdefault("volumes", []).append(
        {"name": VOLUME, "projected": {"sources": sources, "defaultMode": SECRET_MODE}}
    )
    container = main_container(spec)
    container.setdefault("volumeMounts", []).append(
        {"name": VOLUME, "mountPath": SECRET_MOUNT, "readOnly": True}
    )
    container["env"] = [*environment(group, create, rendezvous), *container.get("env", [])]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": create.name,
            "namespace": group.metadata.namespace,
            "labels": labels,
            "annotations": annotations,
            **finalizers,
            "ownerReferences": [owner(group, owner_uid)],
        },
        "spec": spec,
    }


def drain_mark(uid: str, deadline: float) -> Object:
    """The patch that says on a pod that its worker is asked to leave; refused if the pod is another by now."""
    return {"metadata": {"uid": uid, "annotations": {contract.ANNOTATION_DRAIN_DEADLINE: f"{deadline:.3f}"}}}


def main_container(spec: Object) -> Object:
    """The container that is the worker: the one named `main`, else the first."""
    containers: list[Object] = spec["containers"]
    return next((c for c in containers if c.get("name") == "main"), containers[0])


def environment(group: RPCGroup, create: Create, rendezvous: Rendezvous) -> list[Object]:
    own = {
        contract.ENV_NAMESPACE: group.metadata.namespace,
        contract.ENV_GROUP: group.metadata.name,
        contract.ENV_NAME: create.name,
        contract.ENV_ROLE: create.role,
        contract.ENV_INDEX: str(create.index),
        contract.ENV_RENDEZVOUS: rendezvous.url(group),
        contract.ENV_SECRET_FILE: f"{SECRET_MOUNT}/{SECRET_KEY}",
        **compat_environment(group, create.role, create.index),
        **device_maps_environment(group, create.role),
    }
    if rendezvous.users:
        own[contract.ENV_ETCD_USERNAME] = contract.etcd_user(group.metadata.namespace, group.metadata.name)
        own[contract.ENV_ETCD_PASSWORD_FILE] = f"{SECRET_MOUNT}/{ETCD_PASSWORD_KEY}"
    if rendezvous.ca:
        own[contract.ENV_ETCD_CA_FILE] = f"{SECRET_MOUNT}/{ETCD_CA_KEY}"
    if group.spec.security.tls:
        own[contract.ENV_TLS_CA_FILE] = f"{SECRET_MOUNT}/{CA_KEY}"
        own[contract.ENV_TLS_CERT_FILE] = f"{SECRET_MOUNT}/{TLS_CERT_KEY}"
        own[contract.ENV_TLS_KEY_FILE] = f"{SECRET_MOUNT}/{TLS_PRIVATE_KEY}"
    fields = {
        contract.ENV_POD_NAME: "metadata.name",
        contract.ENV_POD_UID: "metadata.uid",
        contract.ENV_HOST: "status.podIP",
    }
    values: list[Object] = [{"name": name, "value": value} for name, value in own.items()]
    return values + [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()
    ]


def pod_labels(group: RPCGroup, role: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/managed-by": "rpcgroup-operator",
        "app.kubernetes.io/instance": group.metadata.name,
        contract.LABEL_GROUP: group.metadata.name,
        contract.LABEL_ROLE: role,
    }


def selector(group: RPCGroup) -> str:
    """Of the elastic workers, as the scale subresource and an HPA want it."""
    return f"{contract.LABEL_GROUP}={group.metadata.name},{contract.LABEL_ROLE}={contract.DEFAULT_ROLE}"


def own_name(group: RPCGroup, uid: str, of: str = "") -> str:
    """Another for each group that ever has the name: what was its predecessor's is about to be deleted."""
    return "-".join(part for part in (group.metadata.name, "rpcgroup", of, uid[:8]) if part)


def secret_name(group: RPCGroup, uid: str) -> str:
    return own_name(group, uid)


def etcd_secret_name(group: RPCGroup, uid: str) -> str:
    return own_name(group, uid, "etcd")


def secret_names(group: RPCGroup, uid: str, rendezvous: Rendezvous) -> list[str]:
    """What a worker finds under SECRET_MOUNT."""
    of_etcd = [etcd_secret_name(group, uid)] if rendezvous.users or rendezvous.ca else []
    of_tls = [tls_secret_name(group, uid)] if group.spec.security.tls else []
    return [secret_name(group, uid), *of_etcd, *of_tls]


def secret(group: RPCGroup, owner_uid: str, value: str) -> Object:
    """The group's secret, made once."""
    return _secret(group, owner_uid, secret_name(group, owner_uid), {SECRET_KEY: value})


def etcd_secret(group: RPCGroup, owner_uid: str, password: str, ca: bytes) -> Object:
    """What lets the group's workers into etcd, made once; without what is empty. `ca` is PEM."""
    values = {ETCD_PASSWORD_KEY: password, ETCD_CA_KEY: ca.decode()}
    content = {key: value for key, value in values.items() if value}
    return _secret(group, owner_uid, etcd_secret_name(group, owner_uid), content)


def authority_secret_name(group: RPCGroup, uid: str) -> str:
    return own_name(group, uid, "ca")


def authority_secret(group: RPCGroup, owner_uid: str, authorities: Sequence[Authority]) -> Object:
    """Those of the group's certificates. No pod mounts it."""
    content = {
        CA_KEY: "".join(a.certificate.decode() for a in authorities),
        CA_PRIVATE_KEY: "".join(a.key.decode() for a in authorities),
    }
    return _secret(group, owner_uid, authority_secret_name(group, owner_uid), content, immutable=False)


def tls_secret_name(group: RPCGroup, uid: str) -> str:
    return own_name(group, uid, "tls")


def tls_secret(group: RPCGroup, owner_uid: str, files: Files) -> Object:
    """What the group's workers show one another, renewed while they run."""
    content = {
        CA_KEY: files.bundle.decode(),
        TLS_CERT_KEY: files.certificate.decode(),
        TLS_PRIVATE_KEY: files.key.decode(),
    }
    return _secret(group, owner_uid, tls_secret_name(group, owner_uid), content, immutable=False)


def _secret(
    group: RPCGroup, owner_uid: str, name: str, content: dict[str, str], *, immutable: bool = True
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": immutable,
        "metadata": {
            "name": name,
            "namespace": group.metadata.namespace,
            "labels": {contract.LABEL_GROUP: group.metadata.name},
            "ownerReferences": [owner(group, owner_uid)],
        },
        "stringData": content,
    }


def budget_name(group: RPCGroup, uid: str) -> str:
    return own_name(group, uid)


def disruption_budget(group: RPCGroup, owner_uid: str) -> Object:
    """Keeps `minReplicas` elastic workers through node drains."""
    labels = {contract.LABEL_GROUP: group.metadata.name, contract.LABEL_ROLE: contract.DEFAULT_ROLE}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": budget_name(group, owner_uid),
            "namespace": group.metadata.namespace,
            "labels": {contract.LABEL_GROUP: group.metadata.name},
            "ownerReferences": [owner(group, owner_uid)],
        },
        "spec": {"minAvailable": group.spec.min_replicas, "selector": {"matchLabels": labels}},
    }


def is_owned(found: Object, owner_uid: str) -> bool:
    return any(ref["uid"] == owner_uid for ref in found["metadata"].get("ownerReferences") or [])


def owner(group: RPCGroup, uid: str) -> Object:
    return {
        "apiVersion": contract.API_VERSION,
        "kind": contract.KIND,
        "name": group.metadata.name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
