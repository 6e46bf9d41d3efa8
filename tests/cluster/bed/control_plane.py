"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler on the loopback interface; no root needed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.cluster.bed import certificates
from tests.cluster.bed.access import Access
from tests.cluster.bed.kubeconfig import kubeconfig_path, write_kubeconfigs, write_tokens
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

    def __init__(
        self, folder: Path, programs: Path, port: int | None = None, advertised: str | None = None
    ) -> None:
        """`folder` gets data, keys and logs; `programs` is the folder of the built ones.

        The API is served on `port`, by default a free one, of the loopback interface; with `advertised`, an
        address of this machine that pods can reach, on every interface.
        """
        self.folder = folder
        self.programs = programs
        self.access = Access(folder, programs)
        self.logs = folder / "logs"
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys = folder / "keys"
        self.server = f"https://127.0.0.1:{port or free_port()}"
        addresses = ["127.0.0.1", FIRST_SERVICE, *([advertised] if advertised else [])]
        certificates.make_certificates(self.keys, addresses)
        tokens = write_tokens(self.keys / "tokens.csv")
        write_kubeconfigs(folder, self.server, self.keys / certificates.AUTHORITY, tokens)

        self.etcd, etcd_url = self._etcd()
        self.api_server = self._api_server(etcd_url, advertised)
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

    def restart_api_server(self, *clients: Program) -> None:
        """After a kill; `clients` are other programs that watch it, beside the control plane's own.

        Those are restarted as well. Each would find its way back, but client-go waits up to a minute between two
        tries, and again where the first answer is that rights are not read yet: no pod would start for so long.
        """
        self.api_server.start()
        for program in (self.controller_manager, self.scheduler, *clients):
            program.stop()
            program.start()

    def program(self, name: str, *arguments: str, health: str, env: dict[str, str] | None = None) -> Program:
        """One of the built programs, ready when the URL `health` answers."""
        command = [str(self.programs / name), *arguments]
        return Program(name, command, self.logs / f"{name}.log", lambda: answers(health), env)

    def kubeconfig_of(self, user: str) -> Path:
        """Of one of `kubeconfig.USERS`."""
        return kubeconfig_path(self.folder, user)

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

    def _api_server(self, etcd_url: str, advertised: str | None) -> Program:
        if advertised:
            reach = ["--bind-address=0.0.0.0", f"--advertise-address={advertised}"]
        else:  # an Endpoints object refuses a loopback address, and no pod could reach it
            reach = [
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ]
        return self.program(
            "kube-apiserver",
            f"--etcd-servers={etcd_url}",
            *reach,
            f"--secure-port={self.server.rpartition(':')[2]}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--tls-cert-file={self.keys / certificates.SERVER_CERTIFICATE}",
            f"--tls-private-key-file={self.keys / certificates.SERVER_KEY}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self.keys / certificates.SERVICE_ACCOUNT_KEY}",
            f"--service-account-signing-key-file={self.keys / certificates.SERVICE_ACCOUNT_KEY}",
            "--authorization-mode=Node,RBAC",
            f"--token-auth-file={self.keys / 'tokens.csv'}",
            # The second is not everywhere, and where it is, who makes objects with owners needs more rights.
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            "--allow-privileged",
            "--profiling=false",
            health=f"{self.server}/readyz",
        )

    def _controller_manager(self) -> Program:
        user, port = "system:kube-controller-manager", free_port()
        return self.program(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig_of(user)}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--service-account-private-key-file={self.keys / certificates.SERVICE_ACCOUNT_KEY}",
            f"--root-ca-file={self.keys / certificates.AUTHORITY}",
            f"--cert-dir={self.keys / 'controller-manager'}",
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
            f"--kubeconfig={self.kubeconfig_of('system:kube-scheduler')}",
            "--leader-elect=false",
            f"--cert-dir={self.keys / 'scheduler'}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            health=f"https://127.0.0.1:{port}/readyz",
        )
