from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rpcgroup.errors import GroupError, ManifestError
from rpcgroup.local.control import MAX_REQUEST, ControlServer, request


def echo(question: dict[str, Any]) -> dict[str, Any]:
    if question.get("command") == "refuse":
        raise ManifestError("replicas: expected at least 1, got 0")
    return {"heard": question}


@contextmanager
def serving(path: Path) -> Iterator[ControlServer]:
    """A loop as the driver's, in a thread of its own that ends with the block."""
    server = ControlServer(path, echo)
    end, ended = socket.socketpair()

    def loop() -> None:
        while ended not in (ready := select.select([server, ended], [], [])[0]):
            assert server in ready
            server.serve_one()

    thread = threading.Thread(target=loop, name="rpcgroup-test-control")
    thread.start()
    try:
        yield server
    finally:
        end.close()
        thread.join()
        ended.close()
        server.close()


def test_a_question_gets_its_answer(tmp_path: Path) -> None:
    with serving(tmp_path / "s"):
        assert request(tmp_path / "s", {"command": "x"}) == {"heard": {"command": "x"}}
    assert not (tmp_path / "s").exists()


def test_a_refusal_is_raised_where_it_was_asked(tmp_path: Path) -> None:
    with serving(tmp_path / "s"), pytest.raises(ManifestError, match="at least 1, got 0"):
        request(tmp_path / "s", {"command": "refuse"})


def test_the_socket_may_lie_deep(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with serving(deep / "control.sock"):
        assert request(deep / "control.sock", {}) == {"heard": {}}


@pytest.mark.parametrize("line", [b"garbage\n", b"[1]\n", b"\xff\xfe\n", b"", b"x" * (MAX_REQUEST + 1)])
def test_what_is_no_question_is_refused_and_disturbs_nobody(tmp_path: Path, line: bytes) -> None:
    with serving(tmp_path / "s"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.settimeout(10)
            client.sendall(line)
            client.shutdown(socket.SHUT_WR)
            assert b"expected one line with a JSON object" in client.recv(1000)
        assert request(tmp_path / "s", {"a": 1}) == {"heard": {"a": 1}}


def test_a_client_that_goes_away_disturbs_nobody(tmp_path: Path) -> None:
    with serving(tmp_path / "s"):
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
        assert request(tmp_path / "s", {}) == {"heard": {}}


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="does not answer"):
        request(tmp_path / "s", {})


def test_a_driver_that_hangs(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "s", echo)
    try:
        with pytest.raises(GroupError, match="does not answer"):
            request(tmp_path / "s", {}, timeout=0.05)
    finally:
        server.close()
