from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from rpcgroup.cli import checks
from rpcgroup.cli.checks import CHECKS, Finding, examine
from rpcgroup.local.etcd_server import EtcdServer

NOWHERE = "etcd://127.0.0.1:1/default/g"


def test_a_machine_that_is_well_has_nothing_to_mend() -> None:
    findings = list(examine({}))
    assert [finding.check for finding in findings] == list(CHECKS)
    assert [finding for finding in findings if finding.verdict == "fail"] == []


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Mapping[str, str]) -> Finding:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(checks, "CHECKS", {"luck": broken, "python": CHECKS["python"]})
    first, second = examine({})
    assert (first.check, first.verdict) == ("luck", "fail")
    assert "no such luck" in first.text
    assert second.verdict == "ok"


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.6.0", (2, 6, 0)), ("2.10.1+cu128", (2, 10, 1)), ("1.49.0rc1", (1, 49))]
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert checks.numbers(text) == numbers


def test_a_package_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.package("no-such-package", "install it").verdict == "fail"
    monkeypatch.setattr(checks, "version", lambda name: "2.5.1")
    finding = checks.package("torch", "install it")
    assert (finding.verdict, finding.mend) == ("fail", "install it")
    monkeypatch.setattr(checks, "version", lambda name: "2.15.0")
    assert checks.package("torch", "install it").verdict == "ok"


def test_etcd_is_reached(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as etcd:
        environ = {"RPCGROUP_RENDEZVOUS": f"etcd://{etcd.endpoint}/default/g"}
        assert CHECKS["etcd reachable"](environ).text.endswith(": 0 members")
        assert CHECKS["clock"](environ).verdict == "ok"


def test_etcd_is_not_reached() -> None:
    finding = CHECKS["etcd reachable"]({"RPCGROUP_RENDEZVOUS": NOWHERE})
    assert finding.verdict == "fail"
    assert NOWHERE in finding.mend
    assert CHECKS["clock"]({"RPCGROUP_RENDEZVOUS": NOWHERE}).verdict == "warn"


def test_no_etcd_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPCGROUP_ETCD", "/no/such/etcd")
    assert CHECKS["etcd program"]({}).verdict == "fail"
    assert CHECKS["etcd program"]({"RPCGROUP_RENDEZVOUS": NOWHERE}).verdict == "ok"


def test_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    environ = {"RPCGROUP_RENDEZVOUS": NOWHERE, "RPCGROUP_SECRET_FILE": str(path)}
    secret = CHECKS["secret"]
    assert secret({"RPCGROUP_RENDEZVOUS": NOWHERE}).verdict == "fail"
    assert secret(environ).verdict == "fail"
    path.write_text("0123456789abcdef" * 4)
    path.chmod(0o604)
    assert secret(environ).verdict == "fail"
    path.chmod(0o600)
    assert secret(environ).verdict == "ok"
    assert secret({"RPCGROUP_SECRET": "0123456789abcdef" * 4}).verdict == "warn"


def test_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        finding = CHECKS["port"]({"RPCGROUP_PORT": number})
        assert finding.verdict == "fail"
        assert f"cannot listen on 127.0.0.1:{number}" in finding.text
    assert CHECKS["port"]({"RPCGROUP_PORT": "http"}).verdict == "fail"
    assert CHECKS["port"]({"RPCGROUP_HOST": "192.0.2.1"}).verdict == "fail"
    assert CHECKS["port"]({}).verdict == "ok"


def test_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.resource, "getrlimit", lambda _: (256, 4096))
    finding = CHECKS["file descriptors"]({})
    assert (finding.verdict, finding.mend) == ("warn", "ulimit -n 4096")


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def torch(devices: list[str]) -> Callable[[str], SimpleNamespace]:
        cuda = SimpleNamespace(
            is_available=lambda: bool(devices),
            device_count=lambda: len(devices),
            get_device_name=devices.__getitem__,
        )
        return lambda _: SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="12.8"))

    monkeypatch.setattr(checks.importlib, "import_module", torch(["H200", "H200"]))
    assert CHECKS["cuda"]({}).text == "2 devices: H200"
    monkeypatch.setattr(checks.importlib, "import_module", torch([]))
    monkeypatch.setattr(checks.os.path, "exists", lambda _: True)
    assert CHECKS["cuda"]({}).verdict == "warn"
    monkeypatch.setattr(checks.os.path, "exists", lambda _: False)
    assert CHECKS["cuda"]({}).verdict == "ok"
