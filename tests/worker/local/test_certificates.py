from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from rpcgroup import contract
from rpcgroup.control.certificates import AUTHORITY_LIFE, LEAF_LIFE
from rpcgroup.environment import read_tls_files
from rpcgroup.local.certificates import LocalCertificates
from rpcgroup.transport.credentials import TlsCredentials

DAY = 86400.0


@pytest.fixture
def certificates(tmp_path: Path) -> LocalCertificates:
    return LocalCertificates(tmp_path / "certificates", "ns", "g")


def credentials(certificates: LocalCertificates) -> TlsCredentials:
    files = read_tls_files(certificates.env())
    assert files is not None
    return TlsCredentials(files, contract.tls_name("ns", "g"))


def test_a_worker_can_use_them(certificates: LocalCertificates) -> None:
    assert certificates.renew(time.time())
    credentials(certificates).contexts()


def test_nobody_else_can_read_them(certificates: LocalCertificates, tmp_path: Path) -> None:
    certificates.renew(time.time())
    for name in certificates.env().values():
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(b"PRIVATE KEY" in content for content in contents) == 1, "the authority's is not among them"


def test_they_are_renewed_when_it_is_time(certificates: LocalCertificates, tmp_path: Path) -> None:
    now = time.time()
    assert certificates.renew(now)
    assert not certificates.renew(now + LEAF_LIFE / 2)
    for n in range(1, 4):
        assert certificates.renew(now + n * (2 / 3 * LEAF_LIFE + 1))
    assert len(list(tmp_path.rglob("tls.key"))) == 2, "what was before the last ones is gone"


def test_a_year_of_looks(certificates: LocalCertificates) -> None:
    now = time.time()
    looks = int(1.2 * AUTHORITY_LIFE / DAY)
    assert 5 < sum(certificates.renew(now + n * DAY) for n in range(looks)) < 20


def test_what_cannot_be_written_is_tried_again(certificates: LocalCertificates, tmp_path: Path) -> None:
    now = time.time()
    obstacle = tmp_path / "certificates"
    obstacle.write_text("not a folder")
    with pytest.raises(OSError):
        certificates.renew(now)
    assert not certificates.renew(now + 1), "not in each round of the driver's loop"
    obstacle.unlink()
    assert certificates.renew(now + 61)
    credentials(certificates)
