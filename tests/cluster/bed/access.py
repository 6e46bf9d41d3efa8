"""How clients reach the cluster: users and their tokens, kubeconfig files, kubectl, the Python client."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config

__all__ = ["ADMIN", "Access", "KubectlError", "write_tokens"]

ADMIN: Final = "admin"
GROUPS: Final[Mapping[str, str]] = {
    ADMIN: "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}
"""Users with a token from the start, and their group. RBAC's default roles know the last two by their names."""

KUBECTL_SECONDS: Final = 60.0


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it wrote."""


def write_tokens(path: Path) -> dict[str, str]:
    """Write the file for `kube-apiserver --token-auth-file`; the token of each user."""
    tokens = {user: secrets.token_hex(16) for user in GROUPS}
    path.touch(mode=0o600)
    path.write_text("".join(f'{token},{user},{user},"{GROUPS[user]}"\n' for user, token in tokens.items()))
    return tokens


class Access:
    """One cluster as its clients see it. Holds no connection; safe to share."""

    def __init__(
        self, server: str, authority: Path, folder: Path, tokens: Mapping[str, str], kubectl: Path
    ) -> None:
        """`server` is the URL; kubeconfig files are written into `folder`."""
        self.server = server
        self._authority = authority
        self._folder = folder
        self._kubectl = kubectl
        for user, token in tokens.items():
            self._write_kubeconfig(user, token)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.kubeconfig_of(ADMIN)

    def kubeconfig_of(self, user: str) -> Path:
        """Of one of the users that exist from the start."""
        return self._folder / f"{user.replace(':', '-')}.kubeconfig"

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token of an hour for a service account that exists."""
        return self.kubectl("create", "token", name, "--namespace", namespace).strip()

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """The same as a kubeconfig file; its default namespace is the account's."""
        token = self.service_account_token(namespace, name)
        return self._write_kubeconfig(f"{namespace}-{name}", token, namespace)

    def kubectl(self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl prints, as the administrator unless said otherwise. Raises `KubectlError`."""
        # A cache of its own: another cluster may have had this port, and other kinds.
        where = f"--kubeconfig={kubeconfig or self.kubeconfig}", f"--cache-dir={self._folder / 'discovery'}"
        command = [str(self._kubectl), *where, *arguments]
        done = subprocess.run(
            command, input=input, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get ARGUMENTS` as the object it shows."""
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    @contextlib.contextmanager
    def client(self, kubeconfig: Path | None = None) -> Iterator[client.ApiClient]:
        """The Python client, as the administrator unless said otherwise; its connections end with the block."""
        path = str(kubeconfig or self.kubeconfig)
        with config.new_client_from_config(path) as api:  # type: ignore[no-untyped-call]
            yield api

    def _write_kubeconfig(self, name: str, token: str, namespace: str = "default") -> Path:
        """In JSON, which is YAML too."""
        authority = base64.b64encode(self._authority.read_bytes()).decode()
        cluster = {"server": self.server, "certificate-authority-data": authority}
        context = {"cluster": "test-bed", "user": name, "namespace": namespace}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test-bed",
            "clusters": [{"name": "test-bed", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "test-bed", "context": context}],
        }
        path = self.kubeconfig_of(name)
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return path
