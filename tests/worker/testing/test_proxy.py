from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from rpcgroup.testing.proxy import FaultyProxy


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that answers each connection with what it gets."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(100):
                    connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, name="rpcgroup-test-echo", daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def connect(proxy: FaultyProxy) -> socket.socket:
    host, _, port = proxy.endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_it_forwards(echo: str) -> None:
    with FaultyProxy(echo) as proxy, connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_what_is_lost_never_arrives_and_the_connection_stays_until_it_is_mended(echo: str) -> None:
    with FaultyProxy(echo) as proxy, connect(proxy) as client:
        proxy.lose()
        client.sendall(b"hello")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.mend()
        client.settimeout(5)
        try:
            assert client.recv(100) == b""
        except ConnectionError:
            pass
        with connect(proxy) as again:
            again.sendall(b"again")
            assert again.recv(100) == b"again"


def test_a_cut_refuses_until_it_is_mended(echo: str) -> None:
    with FaultyProxy(echo) as proxy:
        proxy.cut()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.mend()
        with connect(proxy) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
