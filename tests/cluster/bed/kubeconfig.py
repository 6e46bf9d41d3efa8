"""Who may enter the cluster: users with their tokens, and the files that hold them."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["ADMIN", "USERS", "kubeconfig_path", "write_kubeconfig", "write_kubeconfigs", "write_tokens"]

ADMIN: Final = "admin"
USERS: Final[Mapping[str, str]] = {
    ADMIN: "system:masters",
    "coredns": "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-proxy": "",
    "system:kube-scheduler": "",
    "system:node:real-0": "system:nodes",
}
"""Users and the group of each. RBAC's default roles know those without a group by their names."""


def write_tokens(path: Path) -> dict[str, str]:
    """Write the file for `kube-apiserver --token-auth-file`; the token of each user."""
    tokens = {user: secrets.token_hex(16) for user in USERS}
    path.touch(mode=0o600)
    path.write_text("".join(f'{token},{user},{user},"{USERS[user]}"\n' for user, token in tokens.items()))
    return tokens


def write_kubeconfigs(folder: Path, server: str, authority: Path, tokens: Mapping[str, str]) -> None:
    """One file for each user; `server` is the URL, `authority` the file of the certificate that signed its own."""
    data = base64.b64encode(authority.read_bytes()).decode()
    for user, token in tokens.items():
        write_kubeconfig(kubeconfig_path(folder, user), server, data, token)


def kubeconfig_path(folder: Path, user: str) -> Path:
    return folder / f"{user.replace(':', '-')}.kubeconfig"


def write_kubeconfig(path: Path, server: str, authority: str, token: str, namespace: str = "default") -> None:
    """`authority` in base64. The file is JSON, which is YAML too."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bed",
        "clusters": [{"name": "bed", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": "bed", "user": {"token": token}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "bed", "namespace": namespace}}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))
