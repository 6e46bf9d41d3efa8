"""How a client proves itself to etcd: certificates, a user name with a password, both or neither."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rpcgroup import contract
from rpcgroup.errors import RendezvousError

__all__ = ["EtcdCredentials"]


@dataclass(frozen=True)
class EtcdCredentials:
    """All PEM. Any of the certificates turns TLS on; without a CA gRPC's own roots are trusted."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    ca_pem: bytes = b""
    """The CA's certificate itself, in place of `ca_file`."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> EtcdCredentials:
        password = environ.get(contract.ENV_ETCD_PASSWORD, "")
        if password_file := environ.get(contract.ENV_ETCD_PASSWORD_FILE):
            password = _read(password_file, "the etcd password").decode().strip()
        return cls(
            ca_file=environ.get(contract.ENV_ETCD_CA_FILE, ""),
            cert_file=environ.get(contract.ENV_ETCD_CERT_FILE, ""),
            key_file=environ.get(contract.ENV_ETCD_KEY_FILE, ""),
            username=environ.get(contract.ENV_ETCD_USERNAME, ""),
            password=password,
        )

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise RendezvousError("etcd client certificate: cert_file and key_file must be given together")
        if bool(self.username) != bool(self.password):
            raise RendezvousError("etcd user: username and password must be given together")

    @property
    def tls(self) -> bool:
        return bool(self.ca_file or self.ca_pem or self.cert_file)

    def ca(self) -> bytes | None:
        if self.ca_file:
            return _read(self.ca_file, "the certificate of etcd's CA")
        return self.ca_pem or None

    def cert(self) -> bytes | None:
        return _read(self.cert_file, "the etcd client certificate") if self.cert_file else None

    def key(self) -> bytes | None:
        return _read(self.key_file, "the key of the etcd client certificate") if self.key_file else None


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise RendezvousError(f"cannot read {what}: {exc}") from exc
