"""The conformance suite of transports: each implementation passes all of it."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from rpcgroup.testing.faults import FaultyTransport
from rpcgroup.transport.base import READ_TIMEOUT, Listener, Stream, Transport
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.transport.tcp import TcpTransport
from rpcgroup.transport.tls import TlsTransport
from tests.worker.transport.certificates import credentials

TRANSPORTS: dict[str, Callable[[Path], Transport]] = {
    "tcp": lambda folder: TcpTransport(),
    "tls": lambda folder: TlsTransport(credentials(folder)),
    "memory": lambda folder: MemoryTransport(),
    "faulty": lambda folder: FaultyTransport(MemoryTransport()),
}
PATIENCE = 30.0


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    return TRANSPORTS[request.param](tmp_path)


@pytest.fixture
def listener(transport: Transport) -> Iterator[Listener]:
    listener = transport.listen("127.0.0.1", 0)
    yield listener
    listener.close()


@pytest.fixture
def ends(transport: Transport, listener: Listener) -> Iterator[tuple[Stream, Stream]]:
    """(the dialler's, the listener's)"""
    near = transport.connect(listener.address, PATIENCE)
    far = listener.accept()
    shake_hands(near, far)
    yield near, far
    near.close()
    far.close()


def shake_hands(near: Stream, far: Stream) -> None:
    thread = in_thread(partial(near.handshake, PATIENCE))
    far.handshake(PATIENCE)
    thread.join()


def receive_all(stream: Stream, count: int) -> bytes:
    data = memoryview(bytearray(count))
    at = 0
    while at < count:
        try:
            n = stream.receive(data[at:])
        except BlockingIOError:
            continue
        if n == 0:
            break
        at += n
    return bytes(data[:at])


def send_all(stream: Stream, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.send(view) :]


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_an_address_says_its_scheme(transport: Transport, listener: Listener) -> None:
    assert listener.address.startswith(f"{transport.scheme}://")


def test_bytes_arrive_in_order_in_both_directions(ends: tuple[Stream, Stream]) -> None:
    data = bytes(range(256)) * 8192
    for sender, receiver in (ends, ends[::-1]):
        thread = in_thread(lambda sender=sender: send_all(sender, data))  # type: ignore[misc]
        assert receive_all(receiver, len(data)) == data
        thread.join()


def test_sending_many_buffers_sends_them_in_order(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    parts = [b"one", bytes(100_000), b"", b"three"]
    whole = b"".join(parts)

    def send() -> None:
        taken = 0
        while taken < len(whole):
            rest, skip = [], taken
            for part in parts:
                rest += [memoryview(part)[skip:]] if skip < len(part) else []
                skip = max(0, skip - len(part))
            taken += near.send_many(rest)

    thread = in_thread(send)
    assert receive_all(far, len(whole)) == whole
    thread.join()


def test_try_receive_never_waits(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    with pytest.raises(BlockingIOError):
        far.try_receive(memoryview(bytearray(10)))
    near.send(b"x")
    assert far.wait_readable(PATIENCE)
    assert far.try_receive(memoryview(bytearray(10))) == 1


def test_receive_gives_up_so_that_its_caller_can_look_around(ends: tuple[Stream, Stream]) -> None:
    assert READ_TIMEOUT <= 1
    with pytest.raises(BlockingIOError):
        ends[0].receive(memoryview(bytearray(10)))


def test_receive_whole_gives_up_though_bytes_keep_coming(ends: tuple[Stream, Stream]) -> None:
    """Its caller has a deadline to look at, and the peer's network may be slow."""
    near, far = ends
    given_up = threading.Event()

    def trickle() -> None:
        while not given_up.wait(0.05):
            near.send(b"x")

    thread = in_thread(trickle)
    received = far.receive_whole(memoryview(bytearray(int(PATIENCE / 0.05))))
    given_up.set()
    thread.join()
    assert 0 < received < int(PATIENCE / 0.05)


def test_try_send_takes_what_there_is_room_for(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    data, sent = memoryview(bytes(1 << 16)), 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += near.try_send(data)
    assert sent > 0
    assert len(receive_all(far, sent)) == sent


def test_send_waits_for_room(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    data = bytes(4 << 20)
    thread = in_thread(lambda: send_all(near, data))
    assert len(receive_all(far, len(data))) == len(data)
    thread.join()


def test_wait_readable(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    assert not far.wait_readable(0)
    assert not far.wait_readable(-1)
    near.send(b"x")
    assert far.wait_readable(PATIENCE)


def test_epoll_reports_what_try_receive_would_give(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    with select.epoll() as epoll:
        epoll.register(far.fileno(), select.EPOLLIN)
        assert not epoll.poll(0)
        near.send(b"x")
        assert epoll.poll(PATIENCE)
        far.try_receive(memoryview(bytearray(10)))
        assert not epoll.poll(0)
        near.close()
        assert epoll.poll(PATIENCE)
        assert far.try_receive(memoryview(bytearray(10))) == 0


def test_the_end_of_a_stream(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    near.send(b"last")
    near.close()
    near.close()
    assert receive_all(far, 100) == b"last"
    assert far.receive(memoryview(bytearray(1))) == 0
    with pytest.raises(OSError):
        for _ in range(1000):
            far.send(bytes(65536))


def test_a_closed_stream_raises(ends: tuple[Stream, Stream]) -> None:
    near, _ = ends
    near.close()
    for use in (
        lambda: near.send(b"x"),
        lambda: near.try_send(b"x"),
        lambda: near.send_many([b"x"]),
        lambda: near.receive(memoryview(bytearray(1))),
        lambda: near.try_receive(memoryview(bytearray(1))),
    ):
        with pytest.raises(OSError):
            use()


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_shutdown_wakes_whoever_is_inside(ends: tuple[Stream, Stream], direction: str) -> None:
    near, _ = ends
    ended = threading.Event()
    inside = threading.Event()

    def use() -> None:
        inside.set()
        try:
            while direction == "writer":
                near.send(bytes(1 << 20))
            while True:
                try:
                    if near.receive(memoryview(bytearray(1))) == 0:
                        break
                except BlockingIOError:
                    continue
        except OSError:
            pass
        ended.set()

    thread = in_thread(use)
    assert inside.wait(PATIENCE)
    near.shutdown()
    assert ended.wait(PATIENCE)
    thread.join()
    near.shutdown()
    assert near.fileno() >= 0, "the descriptor stays until close"


def test_the_timeout_of_a_handshake(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    near.set_handshake_timeout(0.05)
    with pytest.raises((BlockingIOError, TimeoutError)):
        near.receive(memoryview(bytearray(1)))
    near.set_handshake_timeout(None)
    far.send(b"x")
    assert near.receive(memoryview(bytearray(1))) == 1


def test_a_forgotten_stream_gives_its_descriptor_back_and_leaves_the_connection_alone(
    ends: tuple[Stream, Stream],
) -> None:
    """What a forked child does with what it inherited: the parent goes on."""
    near, far = ends
    descriptor = near.fileno()
    child = os.fork()
    if not child:
        near.forget()
        try:
            os.fstat(descriptor)
        except OSError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    near.send(b"x")
    assert receive_all(far, 1) == b"x"


def test_a_healthy_stream_is_not_silent(ends: tuple[Stream, Stream]) -> None:
    near, far = ends
    near.send(b"x")
    receive_all(far, 1)
    assert near.silence() < PATIENCE


def test_nobody_listens(transport: Transport, listener: Listener) -> None:
    address = listener.address
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        transport.connect(address, PATIENCE)


def test_an_address_that_is_none(transport: Transport) -> None:
    with pytest.raises(OSError):
        transport.connect("nonsense", PATIENCE)


def test_closing_a_listener_wakes_its_acceptor(transport: Transport) -> None:
    listener = transport.listen("127.0.0.1", 0)
    raised = threading.Event()

    def accept() -> None:
        try:
            listener.accept()
        except OSError:
            raised.set()

    thread = in_thread(accept)
    listener.close()
    assert raised.wait(PATIENCE)
    thread.join()
    with pytest.raises(OSError):
        listener.accept()
    listener.close()


def test_a_connection_that_was_never_accepted_breaks_with_its_listener(transport: Transport) -> None:
    listener = transport.listen("127.0.0.1", 0)
    near = transport.connect(listener.address, PATIENCE)
    listener.close()
    try:
        near.handshake(PATIENCE)
        while True:
            try:
                assert near.receive(memoryview(bytearray(1))) == 0
                break
            except BlockingIOError:
                continue
    except OSError:
        pass  # reset
    near.close()


def test_many_connections_at_once(transport: Transport, listener: Listener) -> None:
    near = [transport.connect(listener.address, PATIENCE) for _ in range(50)]
    far = [listener.accept() for _ in range(50)]
    threads = [in_thread(partial(stream.handshake, PATIENCE)) for stream in near + far]
    for thread in threads:
        thread.join()
    for n, stream in enumerate(near):
        stream.send(bytes((n,)))
    assert sorted(receive_all(stream, 1)[0] for stream in far) == list(range(50))
    for stream in near + far:
        stream.close()
