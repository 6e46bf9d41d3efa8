"""A cluster as its clients see it: kubeconfig files, kubectl, the Python client."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config

from tests.cluster.bed.kubeconfig import ADMIN, kubeconfig_path, write_kubeconfig

__all__ = ["Access", "CommandError"]

KUBECTL_SECONDS: Final = 60.0


class CommandError(Exception):
    """kubectl or helm ended with an error; the message is what it wrote."""


class Access:
    """Holds no connection; safe to share. What it runs, runs as the administrator unless said otherwise."""

    def __init__(self, folder: Path, programs: Path) -> None:
        """`folder` is the cluster's, with the kubeconfigs in it."""
        self._folder = folder
        self._programs = programs

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return kubeconfig_path(self._folder, ADMIN)

    @property
    def server(self) -> str:
        """The URL."""
        return str(self._cluster()["server"])

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token of an hour for a service account that exists."""
        return self.kubectl("create", "token", name, "--namespace", namespace).strip()

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """The same as a kubeconfig file; its default namespace is the account's."""
        path = self._folder / f"{namespace}-{name}.kubeconfig"
        authority = self._cluster()["certificate-authority-data"]
        token = self.service_account_token(namespace, name)
        write_kubeconfig(path, self.server, authority, token, namespace)
        return path

    def kubectl(self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl prints. Raises `CommandError`."""
        # The cache is the cluster's own: another one may have had this port, and other kinds.
        where = f"--kubeconfig={kubeconfig or self.kubeconfig}", f"--cache-dir={self._folder / 'discovery'}"
        return self._run("kubectl", *where, *arguments, input=input)

    def helm(self, *arguments: str, input: str | None = None) -> str:
        """What helm prints. Raises `CommandError`."""
        return self._run("helm", f"--kubeconfig={self.kubeconfig}", *arguments, input=input)

    def kubeconform(self, *arguments: str, input: str | None = None) -> str:
        """What kubeconform prints. Raises `CommandError` for what it finds wrong."""
        return self._run("kubeconform", *arguments, input=input)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ARGUMENTS` as the object it shows."""
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    @contextlib.contextmanager
    def client(self, kubeconfig: Path | None = None) -> Iterator[client.ApiClient]:
        """The Python client; its connections end with the block."""
        path = str(kubeconfig or self.kubeconfig)
        with config.new_client_from_config(path) as api:  # type: ignore[no-untyped-call]
            yield api

    def _cluster(self) -> Any:
        return json.loads(self.kubeconfig.read_text())["clusters"][0]["cluster"]

    def _run(self, program: str, *arguments: str, input: str | None) -> str:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command, input=input, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False
        )
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise CommandError(f"{program} {' '.join(arguments)}: {said}")
        return done.stdout
