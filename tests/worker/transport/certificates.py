"""Certificate files for tests."""

from __future__ import annotations

import time
from pathlib import Path

from rpcgroup.control.certificates import Authority, Files
from rpcgroup.transport.credentials import TlsCredentials, TlsFiles

NAME = "group.namespace.rpcgroup.dev"


def write(folder: Path, files: Files) -> TlsFiles:
    """All three renewed as a kubelet does it: a link is made to lead to another folder."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    for name, content in (("ca.crt", files.bundle), ("tls.crt", files.certificate), ("tls.key", files.key)):
        (version / name).write_bytes(content)
    link = folder / "..new"
    link.symlink_to(version.name)
    link.replace(folder / "..data")
    data = folder / "..data"
    return TlsFiles(data / "ca.crt", data / "tls.crt", data / "tls.key")


def issue(authority: Authority | None = None, name: str = NAME, now: float | None = None) -> Files:
    now = time.time() if now is None else now
    authority = authority or Authority.new(now)
    return authority.sign(name, authority.certificate, now)


def credentials(folder: Path, files: Files | None = None, name: str = NAME) -> TlsCredentials:
    return TlsCredentials(write(folder, files or issue(name=name)), name)
