"""A TCP proxy on the loopback interface that can lose what passes through it, or break."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from types import TracebackType

__all__ = ["FaultyProxy"]

CHUNK = 64 * 1024


class FaultyProxy:
    """Forwards connections to `host:port`; a context manager. One thread does all, from enter to exit.

    `lose` drops packets as a broken network does: connections stay open and nothing arrives. `cut` closes
    them and refuses new ones. `mend` ends either; what was lost stays lost, so those connections are closed.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener: socket.socket | None = None
        self._address = ("127.0.0.1", 0)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()  # guards _orders
        self._orders: list[tuple[str, threading.Event]] = []
        self._losing = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rpcgroup-faulty-proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def lose(self) -> None:
        self._order("lose")

    def cut(self) -> None:
        self._order("cut")

    def mend(self) -> None:
        self._order("mend")

    def __enter__(self) -> FaultyProxy:
        self._listen()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread.start()  # joined in __exit__
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._order("close")
        self._thread.join()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _order(self, what: str) -> None:
        done = threading.Event()
        with self._lock:
            self._orders.append((what, done))
        os.write(self._wake_write, b"!")
        done.wait()

    # The proxy's thread.
    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fileobj == self._wake_read:
                    os.read(self._wake_read, CHUNK)
                    self._obey()
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._forward(key.fileobj)

    def _obey(self) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for what, done in orders:
            if what == "lose":
                self._losing = True
            else:
                self._losing = False
                self._close_all()
            if what == "mend" and self._listener is None:
                self._listen()
            elif what in ("cut", "close"):
                self._stop_listening()
            self._closed = what == "close"
            done.set()

    def _listen(self) -> None:
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listener:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        if source not in self._pairs:
            return
        try:
            data = source.recv(CHUNK)
            if data and not self._losing:
                self._pairs[source].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close_pair(source)

    def _close_pair(self, one: socket.socket) -> None:
        other = self._pairs[one]
        for end in (one, other):
            del self._pairs[end]
            self._selector.unregister(end)
            with contextlib.suppress(OSError):
                end.close()

    def _close_all(self) -> None:
        while self._pairs:
            self._close_pair(next(iter(self._pairs)))
