"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on the loopback interface; no root needed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.cluster.bed import certificates
from tests.cluster.bed.access import Access, write_tokens
from tests.cluster.bed.process import Program, answers, free_port

__all__ = ["ControlPlane"]

SERVICES: Final = "10.96.0.0/16"
FIRST_SERVICE: Final = "10.96.0.1"
"""The Service `kubernetes` has the first address of the range."""

ISSUER: Final = "https://kubernetes.default.svc.cluster.local"


class ControlPlane:
    """A Kubernetes without nodes: everything is checked, stored, collected and scheduled, nothing runs.

    A context manager; start and stop it in one thread. Each has its own ports and its own folder, so that any
    number run beside each other. A stopped program starts again on the same port with the same data.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        """`folder` gets data, keys and logs; `programs` is the folder of the built ones."""
        self.folder = folder
        self.programs = programs
        self.logs = folder / "logs"
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys = folder / "keys"
        certificates.make_certificates(self._keys, ["127.0.0.1", FIRST_SERVICE])
        port = free_port()
        self.access = Access(
            server=f"https://127.0.0.1:{port}",
            authority=self._keys / certificates.AUTHORITY,
            folder=folder,
            tokens=write_tokens(self._keys / "tokens.csv"),
            kubectl=programs / "kubectl",
        )
        self.etcd, etcd_url = self._etcd()
        self.api_server = self._api_server(port, etcd_url)
        self.controller_manager = self._controller_manager()
        self.scheduler = self._scheduler()

    def start(self) -> None:
        """Returns when all are ready. Raises `StartError`; then none of them runs."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            for program in self._all():
                program.start()
            undo.pop_all()

    def stop(self) -> None:
        for program in reversed(self._all()):
            program.stop()

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def program(self, name: str, *arguments: str, health: str, env: dict[str, str] | None = None) -> Program:
        """One of the built programs, ready when the URL `health` answers."""
        command = [str(self.programs / name), *arguments]
        return Program(name, command, self.logs / f"{name}.log", lambda: answers(health), env)

    def _all(self) -> tuple[Program, ...]:
        return self.etcd, self.api_server, self.controller_manager, self.scheduler

    def _etcd(self) -> tuple[Program, str]:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        program = self.program(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # what it stores does not outlive the test run
            "--log-level=warn",
            health=f"{client}/health",
        )
        return program, client

    def _api_server(self, port: int, etcd_url: str) -> Program:
        return self.program(
            "kube-apiserver",
            f"--etcd-servers={etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            "--endpoint-reconciler-type=none",  # no pod could reach it, and an Endpoints refuses loopback
            f"--tls-cert-file={self._keys / certificates.SERVER_CERTIFICATE}",
            f"--tls-private-key-file={self._keys / certificates.SERVER_KEY}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._keys / certificates.SERVICE_ACCOUNT_KEY}",
            f"--service-account-signing-key-file={self._keys / certificates.SERVICE_ACCOUNT_KEY}",
            "--authorization-mode=Node,RBAC",
            f"--token-auth-file={self._keys / 'tokens.csv'}",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--profiling=false",
            health=f"{self.access.server}/readyz",
        )

    def _controller_manager(self) -> Program:
        user, port = "system:kube-controller-manager", free_port()
        return self.program(
            "kube-controller-manager",
            f"--kubeconfig={self.access.kubeconfig_of(user)}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--service-account-private-key-file={self._keys / certificates.SERVICE_ACCOUNT_KEY}",
            f"--root-ca-file={self._keys / certificates.AUTHORITY}",
            f"--cert-dir={self._keys / 'controller-manager'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            # The defaults are for years of service; a test waits for each of these.
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--horizontal-pod-autoscaler-downscale-stabilization=5s",
            "--node-monitor-grace-period=20s",
            health=f"https://127.0.0.1:{port}/healthz",
        )

    def _scheduler(self) -> Program:
        port = free_port()
        return self.program(
            "kube-scheduler",
            f"--kubeconfig={self.access.kubeconfig_of('system:kube-scheduler')}",
            "--leader-elect=false",
            f"--cert-dir={self._keys / 'scheduler'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            health=f"https://127.0.0.1:{port}/readyz",
        )
