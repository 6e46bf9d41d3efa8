from __future__ import annotations

import socket
import sys
import threading

import pytest

from rpcgroup.errors import RpcGroupError
from rpcgroup.transport.tcp import LOCAL_SEND_BUFFER, TcpStream, TcpTransport, owed_silence


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RpcGroupError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*RPCGROUP_PORT"):
            TcpTransport().listen("127.0.0.1", port)


def test_a_host_that_is_not_ours_says_what_to_do() -> None:
    with pytest.raises(RpcGroupError, match=r"cannot listen on 192\.0\.2\.1:0: .*RPCGROUP_HOST"):
        TcpTransport().listen("192.0.2.1", 0)


def test_the_port_is_the_one_asked_for_or_a_free_one() -> None:
    first = TcpTransport().listen("127.0.0.1", 0)
    port = int(first.address.rpartition(":")[2])
    assert port > 0
    first.close()
    second = TcpTransport().listen("127.0.0.1", port)
    assert second.address == f"tcp://127.0.0.1:{port}"
    second.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_ipv6_hosts_stand_in_brackets() -> None:
    try:
        listener = TcpTransport().listen("::1", 0)
    except RpcGroupError:
        pytest.skip("this machine has no IPv6")
    assert listener.address.startswith("tcp://[::1]:")
    near = TcpTransport().connect(listener.address, 10)
    far = listener.accept()
    near.send(b"x")
    assert far.receive(memoryview(bytearray(1))) == 1
    for end in (near, far, listener):
        end.close()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "udp://127.0.0.1:1", "tcp://:5", "", "tcp://h:port"])
def test_what_is_no_address_is_an_os_error(address: str) -> None:
    with pytest.raises(OSError):
        TcpTransport().connect(address, 10)


def test_a_peer_that_does_not_read_is_not_silent() -> None:
    """Its kernel answers: it is busy, not gone."""
    listener = TcpTransport().listen("127.0.0.1", 0)
    near = TcpTransport().connect(listener.address, 10)
    far = listener.accept()
    with pytest.raises(BlockingIOError):
        while True:
            near.try_send(bytes(65536))
    assert near.silence() == 0
    for end in (near, far, listener):
        end.close()


def tcp_info(
    *, retransmits: int = 0, probes: int = 0, unacked: int = 0, last_ack: int = 0, not_sent: int = 0
) -> bytes:
    """As linux/tcp.h lays it out."""
    info = bytearray(232)
    info[2], info[3] = retransmits, probes
    for offset, value in ((24, unacked), (56, last_ack), (144, not_sent)):
        info[offset : offset + 4] = value.to_bytes(4, sys.byteorder)
    return bytes(info)


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        (tcp_info(last_ack=900), 0),
        (tcp_info(unacked=3, last_ack=5000), 0),
        (tcp_info(unacked=3, retransmits=1, last_ack=1500), 1.5),
        (tcp_info(probes=1, last_ack=1010), 0),
        (tcp_info(probes=1, last_ack=1300), 1.3),
        (tcp_info(probes=2, last_ack=2300), 2.3),
        (tcp_info(probes=9, last_ack=9000, not_sent=100), 0),
        (tcp_info(retransmits=2, last_ack=9000, not_sent=100, unacked=1), 9),
        (b"\0" * 100, 0),
    ],
    ids=[
        "idle",
        "sent",
        "sent-again",
        "asked",
        "not-answered",
        "asked-twice",
        "full",
        "full-and-lost",
        "short",
    ],
)
def test_who_owes_a_sign_of_life(info: bytes, seconds: float) -> None:
    assert owed_silence(info) == seconds


def test_a_closed_stream_is_not_silent() -> None:
    listener = TcpTransport().listen("127.0.0.1", 0)
    near = TcpTransport().connect(listener.address, 10)
    near.close()
    assert near.silence() == 0
    listener.close()


def test_a_large_buffer_is_received_in_one_call() -> None:
    listener = TcpTransport().listen("127.0.0.1", 0)
    near = TcpTransport().connect(listener.address, 10)
    far = listener.accept()
    sent, into = bytes(range(256)) * 40_000, bytearray(256 * 40_000)
    sender = threading.Thread(target=lambda: near.send_many([memoryview(sent)]))
    sender.start()
    assert far.receive_whole(memoryview(into)) == len(sent)
    sender.join(10)
    assert into == sent
    near.close()
    assert far.receive_whole(memoryview(into)) == 0
    for end in (far, listener):
        end.close()


def test_a_peer_on_this_host_is_written_to_in_pieces_that_fit_the_cache() -> None:
    listener = TcpTransport().listen("127.0.0.1", 0)
    sock = socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2])))
    far = listener.accept()
    TcpStream(sock)
    # The kernel doubles what it is asked for, see socket(7).
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) in (LOCAL_SEND_BUFFER, 2 * LOCAL_SEND_BUFFER)
    for end in (sock, far, listener):
        end.close()
