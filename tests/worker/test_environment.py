from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rpcgroup import contract
from rpcgroup.environment import Environment, host_identity, own_address, read_secret, read_tls_files
from rpcgroup.errors import GroupError


def test_nothing_is_set() -> None:
    environment = Environment.read({})
    assert environment.name == environment.rendezvous == environment.role == environment.host == ""
    assert environment.port == contract.DEFAULT_PORT
    assert environment.stats_interval == contract.DEFAULT_STATS_INTERVAL
    assert environment.role_device_maps == {}


def test_everything_is_set() -> None:
    environment = Environment.read(
        {
            contract.ENV_RENDEZVOUS: "etcd://h:1/n/g",
            contract.ENV_NAME: "w0",
            contract.ENV_ROLE: "server",
            contract.ENV_HOST: "10.0.0.1",
            contract.ENV_PORT: "4000",
            contract.ENV_POD_NAME: "pod",
            contract.ENV_POD_UID: "uid",
            contract.ENV_STATS_INTERVAL: "0.5",
            contract.ENV_COMPAT: "torch",
            contract.ENV_DEVICE_MAPS: '{"trainer": {"cuda:0": "cuda:1", "cpu": "cpu"}}',
        }
    )
    maps = {"trainer": {"cuda:0": "cuda:1", "cpu": "cpu"}}
    assert environment == Environment(
        "etcd://h:1/n/g", "w0", "server", "10.0.0.1", 4000, "pod", "uid", 0.5, "torch", maps
    )


@pytest.mark.parametrize("name", [contract.ENV_PORT, contract.ENV_STATS_INTERVAL])
@pytest.mark.parametrize("text", ["many", "-1", "1,5"])
def test_a_number_that_is_none_is_named(name: str, text: str) -> None:
    with pytest.raises(GroupError, match=f"{name}='{text}': expected a number"):
        Environment.read({name: text})


@pytest.mark.parametrize(
    ("text", "why"),
    {
        "{": "Expecting property name",
        "[]": "'list' object has no attribute",
        '{"server": "cuda:0"}': "'str' object has no attribute",
        '{"server": {"cuda:0": ["cuda:1"]}}': "device",
        '{"server": {"gpu0": "cuda:0"}}': "gpu0",
        '{"server": {"cuda:0": "cuda:0", "cuda:1": "cuda:0"}}': "cuda:1 and cuda:0 to cuda:0",
    }.items(),
)
def test_device_maps_that_are_none_are_named(text: str, why: str) -> None:
    message = f"{contract.ENV_DEVICE_MAPS}={text!r}: expected the device maps by role, as in "
    with pytest.raises(GroupError) as caught:
        Environment.read({contract.ENV_DEVICE_MAPS: text})
    assert str(caught.value).startswith(message)
    assert why in str(caught.value)


def test_the_secret_of_a_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("from the file\n")
    path.chmod(0o600)
    environ = {contract.ENV_SECRET_FILE: str(path), contract.ENV_SECRET: "from the environment"}
    assert read_secret(environ) == b"from the file"
    assert read_secret({contract.ENV_SECRET: "from the environment"}) == b"from the environment"


def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0o644)
    with pytest.raises(GroupError, match=f"chmod o-rwx {path}"):
        read_secret({contract.ENV_SECRET_FILE: str(path)})


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=rf"cannot read the group's secret from {contract.ENV_SECRET_FILE}="):
        read_secret({contract.ENV_SECRET_FILE: str(tmp_path / "none")})
    empty = tmp_path / "empty"
    empty.touch(0o600)
    for environ in ({}, {contract.ENV_SECRET: ""}, {contract.ENV_SECRET_FILE: str(empty)}):
        with pytest.raises(GroupError, match=r"the group has no secret: .*openssl rand -hex 32"):
            read_secret(environ)


TLS = (contract.ENV_TLS_CA_FILE, contract.ENV_TLS_CERT_FILE, contract.ENV_TLS_KEY_FILE)


def test_a_group_without_tls() -> None:
    assert read_tls_files({}) is None
    assert read_tls_files(dict.fromkeys(TLS, "")) is None


def test_the_files_of_tls(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("ca", "cert", "key")]
    files = read_tls_files({name: str(path) for name, path in zip(TLS, paths, strict=True)})
    assert files is not None
    assert [*files] == paths


@pytest.mark.parametrize("missing", TLS)
def test_some_files_of_tls_are_not_enough(missing: str) -> None:
    with pytest.raises(GroupError, match=f"TLS needs all of .*; not set: {missing}$"):
        read_tls_files({name: "/file" for name in TLS if name != missing})


def test_on_a_read_only_mount_the_mode_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pod, whose user is none that a kubelet knows."""
    file = tmp_path / "secret"
    file.write_text("s3cret")
    file.chmod(0o444)
    real = os.statvfs(file)
    flags = {"f_flag": real.f_flag | os.ST_RDONLY}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**flags))
    assert read_secret({contract.ENV_SECRET_FILE: str(file)}) == b"s3cret"


def test_a_private_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    key.chmod(0o604)
    with pytest.raises(GroupError, match=f"chmod o-rwx {key}"):
        read_tls_files({**dict.fromkeys(TLS, "/file"), contract.ENV_TLS_KEY_FILE: str(key)})


def test_the_address_that_reaches_the_rendezvous() -> None:
    assert own_address("127.0.0.1", 2379) == "127.0.0.1"
    assert own_address("[::1]", 2379) in ("::1", "127.0.0.1")
    assert own_address("no.such.host.invalid", 2379) == "127.0.0.1"


def test_two_processes_of_one_host_agree() -> None:
    assert host_identity() == host_identity() != ""
    assert os.linesep not in host_identity()
