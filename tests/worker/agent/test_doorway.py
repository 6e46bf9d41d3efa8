"""What strangers at the port get: refused, with one clear line in the log, nothing unpickled, nobody disturbed."""

from __future__ import annotations

import json
import logging
import pickle
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rpcgroup.agent import doorway
from rpcgroup.agent.agent import Agent
from rpcgroup.contract import PROTOCOL_VERSION
from rpcgroup.errors import HandshakeError, PeerUnreachableError
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.transport.base import Stream
from rpcgroup.wire.frames import HEADER, pack_frame
from rpcgroup.wire.handshake import Identity, dial_handshake

PATIENCE = 30.0


def echo(x: Any) -> Any:
    return x


@pytest.fixture(params=["memory", "tcp"])
def cluster(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[LocalCluster]:
    caplog.set_level(logging.INFO, "rpcgroup")
    with LocalCluster("ab", transport=request.param) as cluster:
        cluster.agent("a").rpc_sync("b", echo, (1,))
        yield cluster
        assert cluster.agent("a").rpc_sync("b", echo, (2,)) == 2, "nobody else is disturbed"
        assert cluster.agent("a").stats()["links"] == 1


class Touches:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A call whose body proves that it was unpickled. It never is."""
    path = tmp_path / "unpickled"
    body = pickle.dumps((print, (Touches(path),), {}), 5)
    yield b"".join(pack_frame(kind, 1, 1, 0, 0, 0, body) for kind in (3, 5, 32))  # type: ignore[misc]
    assert not path.exists()
    pickle.loads(body)
    assert path.exists(), "the proof works"


def dial(cluster: LocalCluster) -> Stream:
    stream = cluster.transport.connect(cluster.address("b"), PATIENCE)
    stream.handshake(PATIENCE)
    stream.set_handshake_timeout(PATIENCE)
    return stream


def read_to_the_end(stream: Stream) -> bytes:
    data = bytearray(65536)
    read = b""
    try:
        while n := stream.receive(memoryview(data)):
            read += data[:n]
    except ConnectionResetError:
        pass
    stream.close()
    return read


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def message(kind: int, content: Any, version: int = PROTOCOL_VERSION) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<4sBBH", b"RPCG", version, kind, len(data)) + data


def hello(cluster: LocalCluster, **fields: Any) -> dict[str, Any]:
    b = cluster["b"].me
    return {
        "group": "cluster",
        "name": "a",
        "incarnation": cluster["a"].me.incarnation,
        "main": "",
        "to": "b",
        "to_incarnation": b.incarnation,
        "channel": "c",
        "received": 0,
        "resuming": False,
        "nonce": "00" * 32,
        **fields,
    }


@pytest.mark.parametrize(
    ("opening", "why"),
    [
        (lambda c: b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n", "it does not speak this protocol"),
        (lambda c: bytes(range(256)), "it does not speak this protocol"),
        (lambda c: message(1, hello(c), version=PROTOCOL_VERSION + 1), "it speaks protocol version"),
        (lambda c: b"RPCG" + bytes((PROTOCOL_VERSION, 1)) + b"\xff\xff", "is over the cap of 4096"),
        (lambda c: message(1, b"[" * 4000), "is no JSON"),
        (lambda c: message(1, b"{}"), "field 'group' is not a text"),
        (lambda c: message(1, hello(c)) + message(3, {"proof": "00"}), "does not know this group's secret"),
        (lambda c: message(1, hello(c)) + message(3, {"proof": "é"}), "does not know this group's secret"),
        (
            lambda c: message(1, hello(c)) + HEADER.pack(9, 3, 1, 0, 1, 0, 0, 0),
            "does not speak this protocol",
        ),
        (lambda c: HEADER.pack(1000, 3, 1, 0, 1, 0, 0, 0), "it does not speak this protocol"),
    ],
    ids=["http", "garbage", "version", "cap", "json", "fields", "proof", "unicode", "no-proof", "frames"],
)
def test_a_stranger_is_refused_with_one_line(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture, bomb: bytes, opening: Any, why: str
) -> None:
    stream = dial(cluster)
    stream.send(opening(cluster) + bomb)
    read_to_the_end(stream)
    (line,) = refusals(caplog)
    assert line.startswith("a connection was refused: ")
    assert why in line


def test_a_truncated_handshake_is_refused_with_one_line(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    stream = dial(cluster)
    stream.send(message(1, hello(cluster))[:50])
    stream.close()
    until(lambda: refusals(caplog))
    assert refusals(caplog) == [
        "a connection was refused: it broke off in the handshake (the peer closed the connection in the handshake)"
    ]


def test_a_probe_of_the_port_is_nothing_to_warn_of(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        dial(cluster).close()
    cluster.agent("a").rpc_sync("b", echo, (1,))
    assert not refusals(caplog)


@pytest.mark.parametrize("sends", ["nothing", "a byte at a time"])
def test_a_stranger_that_is_slow_is_refused(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    monkeypatch.setattr(doorway, "HANDSHAKE_TIMEOUT", 0.3)
    stream = dial(cluster)
    if sends != "nothing":
        pause = threading.Event()
        with pytest.raises(OSError):
            for byte in message(1, hello(cluster)) * 20:
                stream.send(bytes((byte,)))
                pause.wait(0.02)
    read_to_the_end(stream)
    assert refusals(caplog) == ["a connection was refused: no answer to the handshake within 0.3 s"]


def test_many_strangers_do_not_keep_a_member_out(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "MAX_STRANGERS", 20)
    strangers = [dial(cluster) for _ in range(20)]
    until(lambda: len(cluster.agent("b")._doorway._strangers) == 20)
    crowd = dial(cluster)
    assert read_to_the_end(crowd) == b""
    assert refusals(caplog) == ["a connection was closed: 20 others are in the handshake"]
    assert cluster.agent("a").rpc_sync("b", echo, (1,)) == 1, "who is in stays in"
    strangers.pop().close()
    until(lambda: len(cluster.agent("b")._doorway._strangers) < 20)
    cluster.join("c")
    assert cluster.agent("c").rpc_sync("b", echo, (1,)) == 1, "and there is room again"
    for stream in strangers:
        stream.close()


def recorded_handshake(cluster: LocalCluster, bomb: bytes) -> bytes:
    """What a member's own dialling put on the wire."""
    stream = dial(cluster)
    sent = b""

    def send(data: bytes) -> None:
        nonlocal sent
        sent += data
        stream.send(data)

    def receive(n: int) -> bytes:
        data = b""
        while len(data) < n:
            buffer = bytearray(n - len(data))
            data += buffer[: stream.receive(memoryview(buffer))]
        return data

    me = Identity("cluster", "a", cluster["a"].me.incarnation)
    b = cluster["b"].me
    dial_handshake(send, receive, cluster.agent("a").secret, me, "b", b.incarnation, "channel", 0, False)
    stream.close()
    return sent


def test_a_replayed_handshake_is_refused(
    cluster: LocalCluster, caplog: pytest.LogCaptureFixture, bomb: bytes
) -> None:
    recorded = recorded_handshake(cluster, bomb)
    assert not refusals(caplog), "it was a good one"
    stream = dial(cluster)
    stream.send(recorded + bomb)
    read_to_the_end(stream)
    assert refusals(caplog) == ["a connection was refused: it does not know this group's secret"]


@pytest.mark.parametrize(
    ("change", "listener_says", "dialer_says"),
    [
        ({"secret": b"guess"}, None, "does not know this group's secret"),
        ({"group": "other"}, "it is of group 'other', this is group 'cluster'", "refused: it is of group"),
        ({"to": "z"}, "it wants 'z' of incarnation", "refused: it wants 'z'"),
        ({"incarnation": 9}, "it wants 'b' of incarnation 9, this is 'b' of", "refused: it wants 'b' of"),
    ],
    ids=["secret", "group", "name", "incarnation"],
)
def test_an_agent_that_does_not_belong_is_refused_and_told_why(
    cluster: LocalCluster,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    listener_says: str | None,
    dialer_says: str,
) -> None:
    b = cluster["b"].me
    target = replace(b, name=change.get("to", "b"), incarnation=change.get("incarnation", b.incarnation))
    stranger = Agent(
        name="s",
        group=change.get("group", "cluster"),
        secret=change.get("secret", cluster.agent("a").secret),
        transport=cluster.transport,
        host="127.0.0.1",
    )
    stranger.start(replace(b, name="s", id=99, incarnation=99, address=stranger.address))
    stranger.add_member(target)
    with pytest.raises(PeerUnreachableError, match="was not accepted") as raised:
        stranger.rpc_sync(target.name, echo, (1,))
    assert dialer_says in str(raised.value)
    assert isinstance(raised.value.__cause__, HandshakeError)
    stranger.close()
    if listener_says:
        until(lambda: refusals(caplog))
        (line,) = refusals(caplog)
        assert listener_says in line


def test_a_listener_that_does_not_know_the_secret_gets_no_call(tmp_path: Path) -> None:
    """The other way round: whoever took over a dead member's port."""
    with LocalCluster("a") as cluster:
        a = cluster.agent("a")
        impostor = Agent(
            name="b", group="cluster", secret=b"guess", transport=cluster.transport, host="127.0.0.1"
        )
        record = replace(cluster["a"].me, name="b", id=50, incarnation=50, address=impostor.address)
        impostor.start(record)
        impostor.add_member(cluster["a"].me)
        a.add_member(record)
        with pytest.raises(PeerUnreachableError, match="b does not know this group's secret"):
            a.rpc_sync("b", Path.touch, (tmp_path / "called",))
        assert not (tmp_path / "called").exists()
        impostor.close()


def test_closing_does_not_wait_for_strangers() -> None:
    with LocalCluster("ab", transport="tcp") as cluster:
        strangers = [dial(cluster) for _ in range(5)]
        until(lambda: len(cluster.agent("b")._doorway._strangers) == 5)
        cluster.leave("b", graceful=False)
        for stream in strangers:
            assert read_to_the_end(stream) == b""


def test_the_port_is_closed_with_the_agent() -> None:
    with LocalCluster("ab", transport="tcp") as cluster:
        address = cluster.address("b")
        cluster.leave("b", graceful=False)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), PATIENCE)


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)
