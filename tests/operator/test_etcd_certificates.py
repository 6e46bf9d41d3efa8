from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from rpcgroup_operator.etcd_certificates import new_certificates

HOSTS = ["etcd.ns.svc", "etcd-0.etcd-peers.ns.svc", "127.0.0.1"]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return new_certificates(HOSTS)


def test_they_belong_together(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    for host in HOSTS:
        shake_hands(client, server, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, "elsewhere.ns.svc")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=host)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert one.version()


def test_the_authority_signs_no_other_authority(files: dict[str, bytes]) -> None:
    ca, leaf = (x509.load_pem_x509_certificate(files[name]) for name in ("ca.crt", "tls.crt"))
    leaf.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
