"""The cluster's own authority, the API server's certificate, and the key that signs service accounts' tokens.

Made with the `openssl` command (3.0 or newer). The API server could make a certificate for itself, but that one
holds its advertised address alone, and clients on 127.0.0.1 would refuse it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["AUTHORITY", "SERVER_CERTIFICATE", "SERVER_KEY", "SERVICE_ACCOUNT_KEY", "make_certificates"]

AUTHORITY: Final = "ca.crt"
SERVER_CERTIFICATE: Final = "apiserver.crt"
SERVER_KEY: Final = "apiserver.key"
SERVICE_ACCOUNT_KEY: Final = "service-accounts.key"

SERVICE_NAMES: Final = (
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
)
NEW_KEY: Final = (
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-noenc",
    "-x509",
    "-days",
    "30",
)


def make_certificates(folder: Path, addresses: Sequence[str]) -> None:
    """Write the four files and the authority's key; `addresses` are those that clients use."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = ",".join([*SERVICE_NAMES, *(f"IP:{address}" for address in addresses)])
    _openssl(folder, "req", *NEW_KEY, "-subj", "/CN=test-bed", "-keyout", "ca.key", "-out", AUTHORITY)
    _openssl(
        folder,
        "req",
        *NEW_KEY,
        *("-subj", "/CN=kube-apiserver", "-keyout", SERVER_KEY, "-out", SERVER_CERTIFICATE),
        *("-CA", AUTHORITY, "-CAkey", "ca.key"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={names}"),
    )
    _openssl(folder, "genrsa", "-out", SERVICE_ACCOUNT_KEY, "2048")


def _openssl(folder: Path, *arguments: str) -> None:
    try:
        subprocess.run(
            ["openssl", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise RuntimeError(
            "the test cluster's certificates need the `openssl` command, 3.0 or newer"
        ) from None
    except subprocess.CalledProcessError as exc:
        raise RuntimeError(f"openssl {arguments[0]} failed:\n{exc.stderr}") from exc
