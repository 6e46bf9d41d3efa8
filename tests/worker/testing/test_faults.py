"""It also passes the conformance suite of transports (`tests/worker/transport/test_base.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rpcgroup.testing.faults import Cut, FaultyTransport
from rpcgroup.transport.base import Listener, Stream
from rpcgroup.transport.memory import MemoryTransport

PATIENCE = 10.0


class Network:
    def __init__(self, *cuts: Cut) -> None:
        self.transport = FaultyTransport(MemoryTransport(), cuts)
        self.listener: Listener = self.transport.listen("host", 0)
        self._streams: list[Stream] = []

    def connect(self) -> tuple[Stream, Stream]:
        near = self.transport.connect(self.listener.address, PATIENCE)
        far = self.listener.accept()
        self._streams += [near, far]
        return near, far

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self.listener.close()


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


def read(stream: Stream) -> bytes:
    buffer = bytearray(1000)
    return bytes(buffer[: stream.receive(memoryview(buffer))])


def test_a_cut_of_what_is_sent() -> None:
    network = Network(Cut(sent=5))
    near, far = network.connect()
    assert near.send(b"123") == 3
    assert near.send(b"4567") == 2
    with pytest.raises(OSError):
        near.send(b"67")
    assert read(far) == b"12345"
    assert read(far) == b""
    assert network.transport.severed == 1
    near, far = network.connect()
    assert near.send(b"123456789") == 9, "the next connection lives"
    network.close()


def test_a_cut_of_what_is_received() -> None:
    network = Network(Cut(received=5))
    near, far = network.connect()
    far.send(b"1234567")
    assert read(near) == b"12345"
    with pytest.raises(OSError):
        read(near)
    assert network.transport.severed == 1
    network.close()


def test_sever(network: Network) -> None:
    near, far = network.connect()
    network.transport.sever(network.listener.address)
    assert read(far) == b""
    with pytest.raises(OSError):
        near.send(b"x")
    assert network.transport.severed == 1
    network.connect()
    assert network.transport.connections == 2


def test_refuse(network: Network) -> None:
    network.transport.refuse(network.listener.address)
    with pytest.raises(ConnectionRefusedError):
        network.connect()
    network.transport.restore(network.listener.address)
    network.connect()


def test_silence(network: Network) -> None:
    near, far = network.connect()
    assert near.silence() == 0
    network.transport.silence(network.listener.address)
    assert near.send(b"lost") == 4
    with pytest.raises(BlockingIOError):
        far.try_receive(memoryview(bytearray(9)))
    far.send(b"lost too")
    with pytest.raises(BlockingIOError):
        near.receive(memoryview(bytearray(9)))
    assert near.silence() > 0
    with pytest.raises(TimeoutError):
        network.connect()
    network.transport.restore(network.listener.address)
    network.connect()
    assert near.silence() > 0, "a connection that fell silent stays so"


def test_hold(network: Network) -> None:
    near, far = network.connect()
    network.transport.hold(network.listener.address)
    with pytest.raises(BlockingIOError):
        near.try_send(b"x")
    far.send(b"y")
    assert read(near) == b"y", "the other direction goes on"
    network.transport.restore(network.listener.address)
    assert near.send(b"x") == 1
    assert read(far) == b"x"
