"""What is TLS's own; the rest is in the suite of all transports."""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rpcgroup.control.certificates import LEAF_LIFE, Authority
from rpcgroup.errors import HandshakeError
from rpcgroup.transport.base import Stream, Transport
from rpcgroup.transport.credentials import Contexts, TlsCredentials
from rpcgroup.transport.tcp import TcpTransport
from rpcgroup.transport.tls import PLAIN, TlsStream, TlsTransport
from tests.worker.transport.certificates import NAME, credentials, issue, write

PATIENCE = 30.0


@pytest.fixture
def authority() -> Authority:
    return Authority.new(time.time())


@pytest.fixture
def transport(tmp_path: Path, authority: Authority) -> TlsTransport:
    return TlsTransport(credentials(tmp_path / "ours", issue(authority)))


Outcome = Exception | None


def handshakes(near_by: Transport, far_by: Transport) -> tuple[Outcome, Outcome]:
    """How it ends for the dialler and for the listener."""
    listener = far_by.listen("127.0.0.1", 0)
    address = f"{near_by.scheme}:{listener.address.partition(':')[2]}"
    ends = near_by.connect(address, PATIENCE), listener.accept()
    outcomes: dict[int, Exception] = {}

    def shake(side: int) -> None:
        stream = ends[side]
        try:
            stream.handshake(PATIENCE)
            if side == 0:
                stream.set_handshake_timeout(PATIENCE)
                send_all(stream, b"RPCG and more")
            elif not stream.receive(memoryview(bytearray(4))):
                raise ConnectionResetError("ended")
        except Exception as exc:
            outcomes[side] = exc
        finally:
            if side in outcomes:
                stream.close()

    threads = [in_thread(lambda side=side: shake(side)) for side in (0, 1)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    for stream in (*ends, listener):
        stream.close()
    return outcomes.get(0), outcomes.get(1)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def send_all(stream: Stream, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.send(view) :]


def receive_all(stream: Stream, count: int, step: int = 1 << 20) -> bytes:
    data = memoryview(bytearray(count))
    at = 0
    while at < count:
        try:
            n = stream.receive(data[at : at + step])
        except BlockingIOError:
            continue
        assert n
        at += n
    return bytes(data)


@pytest.fixture
def ends(transport: TlsTransport) -> Iterator[tuple[Stream, Stream]]:
    listener = transport.listen("127.0.0.1", 0)
    near, far = transport.connect(listener.address, PATIENCE), listener.accept()
    thread = in_thread(lambda: near.handshake(PATIENCE))
    far.handshake(PATIENCE)
    thread.join()
    yield near, far
    for stream in (near, far, listener):
        stream.close()


# -- who is let in -------------------------------------------------------------------------------------------


def test_members_of_one_group_meet(transport: TlsTransport) -> None:
    assert handshakes(transport, transport) == (None, None)


def test_a_member_of_another_group_is_refused(transport: TlsTransport, tmp_path: Path) -> None:
    other = TlsTransport(credentials(tmp_path / "other"))
    for near, far in ((transport, other), (other, transport)):
        by_near, by_far = handshakes(near, far)
        assert isinstance(by_near, HandshakeError)
        assert "its certificate is not one of this group: " in str(by_near)
        assert isinstance(by_far, HandshakeError)
        assert "it refused: unknown ca" in str(by_far)


def test_a_certificate_for_another_name_is_refused(
    transport: TlsTransport, authority: Authority, tmp_path: Path
) -> None:
    """Should two groups ever share an authority."""
    other = TlsTransport(credentials(tmp_path / "other", issue(authority, "other"), "other"))
    by_near, by_far = handshakes(transport, other)
    assert isinstance(by_near, HandshakeError)
    assert str(by_near) == f"its certificate is for other, not for {NAME}"
    assert isinstance(by_far, HandshakeError)
    assert str(by_far) == f"its certificate is for {NAME}, not for other"


def test_a_certificate_that_has_expired_is_refused(
    authority: Authority, transport: TlsTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpcgroup.transport.credentials.rehearse", lambda *_: None)
    past = issue(authority, now=time.time() - 2 * LEAF_LIFE)
    late = TlsTransport(TlsCredentials(write(tmp_path / "late", past), NAME))
    by_near, by_far = handshakes(late, transport)
    assert isinstance(by_far, HandshakeError)
    assert str(by_far) == "its certificate is not one of this group: certificate has expired"
    assert isinstance(by_near, HandshakeError)
    assert str(by_near) == "it refused: certificate expired"


class Bare(TlsCredentials):
    """Those of a client that only looks whether the server is the right one."""

    version = ssl.TLSVersion.TLSv1_3

    def contexts(self) -> Contexts:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.maximum_version = self.version
        context.check_hostname = False
        context.load_verify_locations(self.files.authorities)
        return replace(super().contexts(), dialer=context)


@pytest.fixture
def bare(authority: Authority, tmp_path: Path) -> Bare:
    return Bare(write(tmp_path / "bare", issue(authority)), NAME)


def test_a_peer_without_a_certificate_is_refused(transport: TlsTransport, bare: Bare) -> None:
    by_near, by_far = handshakes(TlsTransport(bare), transport)
    assert isinstance(by_far, HandshakeError)
    assert str(by_far) == "it showed no certificate"
    assert isinstance(by_near, HandshakeError)
    assert str(by_near) == "it refused: certificate required"


def test_older_tls_is_refused(transport: TlsTransport, bare: Bare) -> None:
    bare.version = ssl.TLSVersion.TLSv1_2
    by_near, by_far = handshakes(TlsTransport(bare), transport)
    assert isinstance(by_far, HandshakeError)
    assert str(by_far) == "it does not speak TLS 1.3"
    assert isinstance(by_near, HandshakeError)
    assert str(by_near) == "it refused: protocol version"


def test_a_peer_without_tls_is_refused(transport: TlsTransport) -> None:
    _, by_far = handshakes(TcpTransport(), transport)
    assert isinstance(by_far, HandshakeError)
    assert str(by_far) == "it does not speak TLS"


def test_a_listener_without_tls_is_no_peer(transport: TlsTransport) -> None:
    listener = TcpTransport().listen("127.0.0.1", 0)
    near = transport.connect(listener.address.replace("tcp:", "tls:"), PATIENCE)
    far = listener.accept()
    far.send(b"RPCG" + bytes(100))
    with pytest.raises(HandshakeError, match="it does not speak TLS"):
        near.handshake(PATIENCE)
    for end in (near, far, listener):
        end.close()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tls://127.0.0.1", "tls://h:port"])
def test_an_address_of_another_scheme_is_none(transport: TlsTransport, address: str) -> None:
    with pytest.raises(OSError, match="not a tls address"):
        transport.connect(address, PATIENCE)
    with pytest.raises(OSError, match="not a tcp address"):
        TcpTransport().connect("tls://127.0.0.1:1", PATIENCE)


# -- how long a stranger may take ------------------------------------------------------------------------------


def test_a_stranger_that_says_nothing_is_given_up(transport: TlsTransport) -> None:
    listener = transport.listen("127.0.0.1", 0)
    host, port = listener.address.removeprefix("tls://").split(":")
    with socket.create_connection((host, int(port))):
        far = listener.accept()
        with pytest.raises(TimeoutError, match="TLS handshake"):
            far.handshake(0.05)
        far.close()
    listener.close()


def test_a_stranger_that_says_one_byte_at_a_time_gains_nothing(transport: TlsTransport) -> None:
    listener = transport.listen("127.0.0.1", 0)
    host, port = listener.address.removeprefix("tls://").split(":")
    given_up = threading.Event()

    def trickle() -> None:
        with socket.create_connection((host, int(port))) as sock:
            for byte in b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(16000):
                if given_up.wait(0.01):
                    return
                sock.send(bytes((byte,)))

    thread = in_thread(trickle)
    far = listener.accept()
    with pytest.raises(TimeoutError, match="TLS handshake"):
        far.handshake(0.2)
    given_up.set()
    thread.join()
    for end in (far, listener):
        end.close()


def test_a_peer_that_sends_a_record_byte_by_byte_is_given_up(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    assert isinstance(near, TlsStream)
    near._encrypt((bytes(PLAIN),), PLAIN)
    given_up = threading.Event()

    def trickle() -> None:
        with socket.socket(fileno=os.dup(near.fileno())) as sock:
            for byte in bytes(near._unsent):
                if given_up.wait(0.01):
                    return
                sock.send(bytes((byte,)))

    thread = in_thread(trickle)
    far.set_handshake_timeout(0.2)
    with pytest.raises(BlockingIOError):
        far.receive(memoryview(bytearray(100)))
    given_up.set()
    thread.join()


def test_a_handshake_that_is_too_large_is_refused_before_it_is_here(transport: TlsTransport) -> None:
    """OpenSSL caps what it takes, so a stranger costs no memory."""
    listener = transport.listen("127.0.0.1", 0)
    host, port = listener.address.removeprefix("tls://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        far = listener.accept()
        sock.send(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(0x4000 - 4))
        with pytest.raises(HandshakeError, match="excessive message size"):
            far.handshake(PATIENCE)
        far.close()
    listener.close()


# -- bytes ---------------------------------------------------------------------------------------------------


def test_what_travels_cannot_be_read(transport: TlsTransport) -> None:
    listener = transport.listen("127.0.0.1", 0)
    near, far = transport.connect(listener.address, PATIENCE), listener.accept()
    thread = in_thread(lambda: near.handshake(PATIENCE))
    far.handshake(PATIENCE)
    thread.join()
    near.send(b"the group's secret" * 100)
    assert far.wait_readable(PATIENCE)
    with socket.socket(fileno=os.dup(far.fileno())) as sock:
        assert b"secret" not in sock.recv(65536, socket.MSG_PEEK)
    assert receive_all(far, 18) == b"the group's secret"
    for end in (near, far, listener):
        end.close()


@pytest.mark.parametrize("room", [1, 8, 1000, PLAIN, 3 * PLAIN, 1 << 20])
def test_the_descriptor_tells_of_what_is_decrypted_already(ends: tuple[Stream, Stream], room: int) -> None:
    """Epoll is asked before each read, and nothing else, as the reactor does: nothing may stay behind unseen."""
    near, far = ends
    data = random.Random(room).randbytes(100_000 if room > 8 else 20_000)
    thread = in_thread(lambda: send_all(near, data))
    into = memoryview(bytearray(room))
    received = bytearray()
    with select.epoll() as epoll:
        epoll.register(far.fileno(), select.EPOLLIN)
        while len(received) < len(data):
            assert epoll.poll(PATIENCE)
            try:
                n = far.try_receive(into)
            except BlockingIOError:
                continue  # a part of a record
            received += into[:n]
        thread.join()
        assert received == data
        assert not epoll.poll(0)


def test_large_and_small_rooms_in_turn(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    choice = random.Random(1)
    data = choice.randbytes(3_000_000)
    thread = in_thread(lambda: send_all(near, data))
    received = bytearray()
    while len(received) < len(data):
        into = memoryview(
            bytearray(min(choice.choice([1, 24, 5000, 40_000, 70_000]), len(data) - len(received)))
        )
        whole = choice.random() < 0.5
        try:
            n = (far.receive_whole if whole else far.receive)(into)
        except BlockingIOError:
            continue
        assert n == len(into) or not whole
        received += into[:n]
    thread.join()
    assert received == data


def test_one_thread_sends_while_another_receives(ends: tuple[Stream, Stream]) -> None:
    """In both directions at once: OpenSSL's object for it would not survive this without a lock."""
    data = {n: random.Random(n).randbytes(4_000_000) for n in (0, 1)}
    received: dict[int, bytes] = {}

    def receive(n: int) -> None:
        received[n] = receive_all(ends[n], len(data[1 - n]))

    threads = [in_thread(lambda n=n: send_all(ends[n], data[n])) for n in (0, 1)]  # type: ignore[misc]
    threads += [in_thread(lambda n=n: receive(n)) for n in (0, 1)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert received == {0: data[1], 1: data[0]}


def test_what_a_send_has_not_taken_is_sent_once(ends: tuple[Stream, Stream]) -> None:
    """A record that the kernel took half of is not encrypted again; `try_send`, `send` and `send_many` know of it."""
    near, far = ends
    data = random.Random(2).randbytes(8_000_000)
    received: list[bytes] = []
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += near.try_send(data[sent : sent + 50_000])
    thread = in_thread(lambda: received.append(receive_all(far, len(data))))
    ways: list[Callable[[bytes], int]] = [
        near.send,
        near.try_send,
        lambda part: near.send_many([b"", part, b""]),
    ]
    choice = random.Random(3)
    while sent < len(data):
        part = data[sent : sent + choice.choice([1, 10, 5000, PLAIN, 200_000])]
        try:
            sent += choice.choice(ways)(part)
        except BlockingIOError:
            select.select([], [near.fileno()], [], PATIENCE)
    thread.join()
    assert received == [data]


def test_a_changed_byte_breaks_the_connection(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    with socket.socket(fileno=os.dup(near.fileno())) as sock:
        sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(OSError, match=r"(?i)bad record mac|decryption failed"):
        far.receive(memoryview(bytearray(100)))


def test_nothing_follows_the_handshake_unasked(ends: tuple[Stream, Stream]) -> None:
    """No session tickets: an idle connection is silent, and each connection shows its certificates."""
    for stream in ends:
        assert not stream.wait_readable(0)


def test_openssls_own_client_agrees(transport: TlsTransport, tmp_path: Path) -> None:
    """Another program as the peer: what is refused and what is taken is not only a matter of this code."""
    listener = transport.listen("127.0.0.1", 0)
    files = tmp_path / "ours" / "..data"
    command = ["openssl", "s_client", "-connect", listener.address.removeprefix("tls://"), "-quiet"]
    shown = ["-cert", str(files / "tls.crt"), "-key", str(files / "tls.key")]
    checked = ["-CAfile", str(files / "ca.crt"), "-verify_return_error", "-verify_hostname", NAME]
    try:
        client = subprocess.Popen([*command, *shown, *checked], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except FileNotFoundError:
        pytest.skip("no openssl on the PATH")
    assert client.stdin is not None and client.stdout is not None
    far = listener.accept()
    far.handshake(PATIENCE)
    client.stdin.write(b"hello")
    client.stdin.flush()
    assert receive_all(far, 5) == b"hello"
    assert client.stdout.read(1) == b"\1"
    for end in (far, listener, client.stdin):
        end.close()
    client.stdout.close()
    client.wait(PATIENCE)
