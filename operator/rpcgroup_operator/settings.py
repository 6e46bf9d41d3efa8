"""What the operator is told by its command line or environment."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Settings"]

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Settings:
    etcd: tuple[str, ...]
    """`HOST:PORT` of each member of the etcd in which the workers meet."""
    etcd_for_workers: str = ""
    """The same as workers reach it; default: as the operator does."""
    etcd_secret: str = ""
    """Secret with the certificates of the chart's etcd, made where there is none; empty: it is another's etcd, or
    speaks no TLS."""
    etcd_hosts: tuple[str, ...] = ()
    """The names for which these certificates are."""
    etcd_auth: bool = False
    """Turn authentication on in the chart's etcd, as root."""
    secret: str = ""
    """Secret with what the operator alone has to know, made where there is none: from it come the passwords of
    groups in etcd. Empty: groups get no users."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    workers: int = 32
    """Groups reconciled at once."""
    leader_election: bool = True
    lease_name: str = "rpcgroup-operator"
    lease_namespace: str = ""
    liveness_port: int = 8080
    metrics_port: int = 9090
    identity: str = field(default_factory=lambda: os.environ.get("POD_NAME", socket.gethostname()))

    @property
    def rendezvous(self) -> str:
        return self.etcd_for_workers or ",".join(self.etcd)

    def watches(self, namespace: str) -> bool:
        return not self.watch_namespaces or namespace in self.watch_namespaces

    def own_namespace(self) -> str:
        """Where the lease is: said, or that of the operator's pod, or `default` outside a cluster."""
        if self.lease_namespace:
            return self.lease_namespace
        return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "default"
