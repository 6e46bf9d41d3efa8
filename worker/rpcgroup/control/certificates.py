"""The certificates of a group's TLS: what is wanted, from what is there and what time it is. Pure.

A group has a certificate authority of its own, and one leaf certificate that all its workers share. An authority
is followed by the next while calls go on: it has to be in everybody's bundle before it signs, and stays there
until nothing that it has signed can be valid any more.

    phase        authorities   in the bundle   leaf signed by   until
    ALONE        one           it              it               ROLLOVER before its end; then a new one is made
    INTRODUCED   old, new      both            old              both have been in the bundle for DELAY
    RETIRING     old, new      both            new              the end of the old one; then the new one is ALONE

All times are in the certificates. The files are written as a whole, with a new leaf each time: so the bundle is as
old as the leaf, and whoever comes back after a crash knows how long everybody has had it. An authority that has
ended, or is lost, is followed at once: nobody could be kept in touch by waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "AUTHORITY_LIFE",
    "BACKDATE",
    "DELAY",
    "LEAF_LIFE",
    "ROLLOVER",
    "Authority",
    "Files",
    "Phase",
    "next_change_at",
    "phase",
    "wanted_authorities",
    "wanted_files",
]

DAY: Final = 86400.0

LEAF_LIFE: Final = 90 * DAY
"""Seconds. Renewed at two thirds: whoever renews it may be away for a month."""
RENEWED_AFTER: Final = 2 / 3
DELAY: Final = DAY
"""Seconds in which everybody has read new files: a kubelet takes two minutes, and may be cut off for a while."""
AUTHORITY_LIFE: Final = 365 * DAY
"""Seconds. Its end costs nobody a call, so it comes often enough for everybody to know that it works."""
ROLLOVER: Final = LEAF_LIFE + DELAY + 29 * DAY
"""Seconds before an authority's end: what it signs last is through before that, with a month to spare."""
BACKDATE: Final = 3600.0
"""Seconds by which the clock of a worker may be behind that of whoever signs."""


class Phase(Enum):
    ALONE = "Alone"
    INTRODUCED = "Introduced"
    RETIRING = "Retiring"


@dataclass(frozen=True)
class Authority:
    """A certificate authority: certificate and private key, both PEM."""

    certificate: bytes
    key: bytes

    @classmethod
    def new(cls, now: float) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # No two have the same name: so a verifier looks only for the one that has signed.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"rpcgroup CA {serial:040x}")])
        builder = _builder(key, now, now + AUTHORITY_LIFE).serial_number(serial)
        certificate = (
            builder.subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate.public_bytes(Encoding.PEM), _pem(key))

    @property
    def not_after(self) -> float:
        """Unix seconds."""
        return _not_after(x509.load_pem_x509_certificate(self.certificate))

    def is_usable(self, now: float) -> bool:
        return _fit(self.certificate, self.key) and now < self.not_after

    def sign(self, name: str, bundle: bytes, now: float) -> Files:
        """A new leaf for the DNS name `name`, with a key of its own. It does not outlive this authority."""
        issuer = x509.load_pem_x509_certificate(self.certificate)
        key = ec.generate_private_key(ec.SECP256R1())
        signer = load_pem_private_key(self.key, None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            _builder(key, now, min(now + LEAF_LIFE, _not_after(issuer)))
            .serial_number(x509.random_serial_number())
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rpcgroup worker")]))
            .issuer_name(issuer.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(purposes, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        return Files(bundle, certificate.public_bytes(Encoding.PEM), _pem(key))


@dataclass(frozen=True)
class Files:
    """What every worker of the group reads, all PEM: whom it trusts, and what it shows."""

    bundle: bytes
    certificate: bytes
    key: bytes

    @property
    def issued_at(self) -> float:
        """Unix seconds."""
        leaf = x509.load_pem_x509_certificate(self.certificate)
        return leaf.not_valid_before_utc.timestamp() + BACKDATE

    @property
    def not_after(self) -> float:
        """Unix seconds."""
        return _not_after(x509.load_pem_x509_certificate(self.certificate))

    def trusts(self, authority: Authority) -> bool:
        return authority.certificate in self.bundle

    def is_by(self, authority: Authority) -> bool:
        leaf = x509.load_pem_x509_certificate(self.certificate)
        return leaf.issuer == x509.load_pem_x509_certificate(authority.certificate).subject

    def is_usable(self, name: str) -> bool:
        if not _fit(self.certificate, self.key):
            return False
        leaf = x509.load_pem_x509_certificate(self.certificate)
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        return [*names] == [x509.DNSName(name)]


def wanted_authorities(present: Sequence[Authority], now: float) -> tuple[Authority, ...]:
    """The older first; to be kept before the files that go with them are. What cannot be read counts as lost."""
    usable = tuple(a for a in present if a.is_usable(now))
    if not usable or now >= usable[-1].not_after - ROLLOVER:
        usable += (Authority.new(now),)
    return usable


def wanted_files(authorities: Sequence[Authority], present: Files | None, name: str, now: float) -> Files:
    """`present` itself where it may stay."""
    if present is not None and not present.is_usable(name):
        present = None
    signer = authorities[_SIGNER[phase(authorities, present, now)]]
    bundle = b"".join(a.certificate for a in authorities)
    stands = (
        present is not None
        and present.bundle == bundle
        and present.is_by(signer)
        and now < _renewed_at(present, signer)
    )
    return present if present is not None and stands else signer.sign(name, bundle, now)


def phase(authorities: Sequence[Authority], files: Files | None, now: float) -> Phase:
    if len(authorities) == 1:
        return Phase.ALONE
    new = authorities[-1]
    if files is None:
        return Phase.INTRODUCED
    known = files.trusts(new) and now >= files.issued_at + DELAY
    return Phase.RETIRING if known or files.is_by(new) else Phase.INTRODUCED


def next_change_at(authorities: Sequence[Authority], files: Files, now: float) -> float:
    """Unix seconds at which something else will be wanted, where these are what is wanted `now`."""
    current = phase(authorities, files, now)
    return min(_UNTIL[current](authorities, files), _renewed_at(files, authorities[_SIGNER[current]]))


_SIGNER: Final[Mapping[Phase, int]] = {Phase.ALONE: 0, Phase.INTRODUCED: 0, Phase.RETIRING: -1}
_UNTIL: Final[Mapping[Phase, Callable[[Sequence[Authority], Files], float]]] = {
    Phase.ALONE: lambda authorities, files: authorities[0].not_after - ROLLOVER,
    Phase.INTRODUCED: lambda authorities, files: min(files.issued_at + DELAY, authorities[0].not_after),
    Phase.RETIRING: lambda authorities, files: authorities[0].not_after,
}


def _renewed_at(files: Files, signer: Authority) -> float:
    end = files.not_after
    if end >= signer.not_after:
        return end  # a new one would live no longer
    return files.issued_at + RENEWED_AFTER * (end - files.issued_at)


def _fit(certificate: bytes, key: bytes) -> bool:
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
        return load_pem_private_key(key, None).public_key() == public
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no PEM, or a key under a password
        return False


def _not_after(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _builder(key: ec.EllipticCurvePrivateKey, now: float, not_after: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .not_valid_before(_time(now) - timedelta(seconds=BACKDATE))
        .not_valid_after(_time(not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _time(unix: float) -> datetime:
    return datetime.fromtimestamp(int(unix), timezone.utc)  # certificates know whole seconds


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
