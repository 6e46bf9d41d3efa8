from __future__ import annotations

from pathlib import Path

import pytest

from rpcgroup import contract
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.credentials import EtcdCredentials


def test_none_by_default() -> None:
    nothing = EtcdCredentials.from_env({})
    assert nothing == EtcdCredentials()
    assert not nothing.tls
    assert (nothing.ca(), nothing.cert(), nothing.key()) == (None, None, None)


def test_from_the_environment(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("from the file\n")
    mine = EtcdCredentials.from_env(
        {
            contract.ENV_ETCD_CA_FILE: "ca",
            contract.ENV_ETCD_CERT_FILE: "cert",
            contract.ENV_ETCD_KEY_FILE: "key",
            contract.ENV_ETCD_USERNAME: "worker",
            contract.ENV_ETCD_PASSWORD: "from the environment",
            contract.ENV_ETCD_PASSWORD_FILE: str(secret),
        }
    )
    assert mine == EtcdCredentials("ca", "cert", "key", "worker", "from the file")
    assert mine.tls


def test_the_password_is_not_printed() -> None:
    assert "hush" not in repr(EtcdCredentials(username="worker", password="hush"))


@pytest.mark.parametrize(
    "fields", [{"cert_file": "c"}, {"key_file": "k"}, {"username": "u"}, {"password": "p"}]
)
def test_half_a_pair_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(RendezvousError, match="together"):
        EtcdCredentials(**fields)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match=r"CA.*missing\.pem"):
        EtcdCredentials(ca_file=str(tmp_path / "missing.pem")).ca()
    with pytest.raises(RendezvousError, match="password"):
        EtcdCredentials.from_env({contract.ENV_ETCD_PASSWORD_FILE: str(tmp_path / "missing")})
