"""The certificates of a local group, as files that its workers read; the authority's key stays in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from rpcgroup import contract
from rpcgroup.control.certificates import Authority, Files, next_change_at, wanted_authorities, wanted_files

__all__ = ["LocalCertificates"]


RETRY: Final = 60.0
"""Seconds, where they could not be written."""


class LocalCertificates:
    """Made before the first worker; owned by the driver's loop."""

    def __init__(self, folder: Path, namespace: str, group: str) -> None:
        self._folder = folder
        self._current = folder / "current"
        self._name = contract.tls_name(namespace, group)
        self._authorities: tuple[Authority, ...] = ()
        self._files: Files | None = None
        self._versions = 0
        self._change_at = 0.0

    def env(self) -> dict[str, str]:
        """Of a worker."""
        return {
            contract.ENV_TLS_CA_FILE: str(self._current / "ca.crt"),
            contract.ENV_TLS_CERT_FILE: str(self._current / "tls.crt"),
            contract.ENV_TLS_KEY_FILE: str(self._current / "tls.key"),
        }

    def renew(self, now: float) -> bool:
        """Make what is due, if anything is; whether it was. Raises `OSError` where it cannot be written."""
        if now < self._change_at:
            return False
        self._change_at = now + RETRY
        self._authorities = wanted_authorities(self._authorities, now)
        files = wanted_files(self._authorities, self._files, self._name, now)
        written = files != self._files
        if written:
            self._write(files)
            self._files = files
        self._change_at = next_change_at(self._authorities, files, now)
        return written

    def _write(self, files: Files) -> None:
        """All of them at once, as a kubelet does: a link is made to lead to another folder."""
        self._versions += 1
        folder = self._folder / str(self._versions)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
        folder.mkdir(mode=0o700, parents=True)
        contents = {"ca.crt": files.bundle, "tls.crt": files.certificate, "tls.key": files.key}
        for name, content in contents.items():
            (folder / name).touch(0o600)
            (folder / name).write_bytes(content)
        link = self._folder / "new"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(self._current)
        # Not the one before: somebody may be reading it.
        shutil.rmtree(self._folder / str(self._versions - 2), ignore_errors=True)
