"""What a worker shows and whom it trusts: three PEM files that somebody else renews while it runs."""

from __future__ import annotations

import logging
import math
import os
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rpcgroup.errors import GroupError, HandshakeError

__all__ = ["Contexts", "TlsCredentials", "TlsFiles", "check_peer", "in_words", "rehearse"]

ROUNDS: Final = 10
"""Flights of a handshake in memory; two are enough."""
RETRY: Final = 60.0
"""Seconds after which files that could not be used are read again: this clock may be behind the signer's."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """Paths: the authorities of the group, this worker's certificate, and its private key. All PEM."""

    authorities: Path
    certificate: Path
    key: Path

    def stamp(self) -> tuple[object, ...]:
        """Another one once one of them has changed, or gone. The paths may lead through links, which are followed."""
        return tuple(_stamp(path) for path in self)

    def __iter__(self) -> Iterator[Path]:
        return iter((self.authorities, self.certificate, self.key))


@dataclass(frozen=True)
class Contexts:
    """For connections that are made from now on, by who dials. TLS 1.3, certificates on both sides."""

    dialer: ssl.SSLContext
    listener: ssl.SSLContext

    @classmethod
    def load(cls, files: TlsFiles, name: str) -> Contexts:
        """Raises `OSError` or `HandshakeError` for files that no two workers could meet with."""
        for path in files:
            path.open("rb").close()  # OpenSSL does not say which one it cannot read
        new = cls(_load(ssl.PROTOCOL_TLS_CLIENT, files), _load(ssl.PROTOCOL_TLS_SERVER, files))
        # No session is resumed: each connection shows its certificates, and nothing follows the handshake unasked.
        new.listener.num_tickets = 0
        rehearse(new.dialer, new.listener, name)
        return new


class TlsCredentials:
    """The newest usable `Contexts` of the files. Thread-safe.

    `name` is the DNS name that the group's certificates are for. Raises `GroupError` where the files cannot be
    used at the start; later ones that cannot are passed over, with one warning each.
    """

    def __init__(self, files: TlsFiles, name: str) -> None:
        self.name = name
        self.files = files
        self._lock = threading.Lock()  # guards the rest
        try:
            self._again_at = math.inf
            self._seen = files.stamp()
            self._contexts = Contexts.load(files, name)
        except OSError as exc:
            raise GroupError(f"cannot use the group's certificates: {self._fault(exc)}") from exc

    def contexts(self) -> Contexts:
        with self._lock:
            stamp = self.files.stamp()  # before they are read: what changes meanwhile is read next time
            changed = stamp != self._seen
            if changed or time.monotonic() >= self._again_at:
                self._seen, self._again_at = stamp, math.inf
                try:
                    self._contexts = Contexts.load(self.files, self.name)
                except OSError as exc:
                    self._again_at = time.monotonic() + RETRY
                    if changed:
                        _log.warning("going on with the certificates read before: %s", self._fault(exc))
            return self._contexts

    def _fault(self, exc: OSError) -> str:
        files = self.files
        if isinstance(exc, (ssl.SSLError, HandshakeError)):
            why = in_words(exc) if isinstance(exc, ssl.SSLError) else str(exc)
            return f"{files.authorities}, {files.certificate} and {files.key} do not fit together: {why}"
        return f"{exc.filename}: {exc.strerror}"


def rehearse(dialer: ssl.SSLContext, listener: ssl.SSLContext, name: str) -> None:
    """Let the two meet in memory: raises `OSError` or `HandshakeError` where chain, name, times or key do not fit."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [dialer.wrap_bio(back, there), listener.wrap_bio(there, back, server_side=True)]
    for _ in range(ROUNDS):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in ends:
        check_peer(end, name)


def check_peer(tls: ssl.SSLObject, name: str) -> None:
    """Raise `HandshakeError` unless the peer's certificate, which has been verified, is for `name` alone."""
    names = (tls.getpeercert() or {}).get("subjectAltName", ())
    if names != (("DNS", name),):
        shown = ", ".join(str(entry[1]) for entry in names) or "nobody"
        raise HandshakeError(f"its certificate is for {shown}, not for {name}")


def in_words(exc: ssl.SSLError) -> str:
    """What OpenSSL found wrong with the peer, as a sentence about it."""
    reason = exc.reason or ""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not one of this group: {exc.verify_message}"
    if "_ALERT_" in reason:
        return f"it refused: {reason.partition('_ALERT_')[2].replace('_', ' ').lower()}"
    return _REASONS.get(reason, str(exc))


_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS, but HTTP",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NO_START_LINE": "there is no PEM in a file",
    "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in a file",
}


def _stamp(path: Path) -> object:
    try:
        found = os.stat(path)
    except OSError as exc:
        return exc.errno
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _load(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a listener cannot; `check_peer` does it on both sides
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files.authorities)
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    return context


def _no_password() -> str:
    """Or OpenSSL would ask at the terminal."""
    return ""
