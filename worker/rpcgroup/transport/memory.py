"""Inside one process: names instead of ports, socket pairs instead of a network. For tests and examples.

Addresses are `memory://name`. It takes the same paths through the kernel's readiness as TCP does, so a test
over it exercises the same reactor; no port is opened.
"""

from __future__ import annotations

import itertools
import queue
import socket
import threading

from rpcgroup.transport.base import Listener, Stream
from rpcgroup.transport.sockets import SocketStream

__all__ = ["MemoryTransport"]


class _MemoryListener:
    def __init__(self, transport: MemoryTransport, name: str) -> None:
        self._transport = transport
        self._name = name
        self._arrivals: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        self._closed = False
        self.address = f"memory://{name}"

    def arrive(self, stream: Stream) -> None:
        self._arrivals.put(stream)
        if self._closed:
            self._turn_away()

    def accept(self) -> Stream:
        stream = self._arrivals.get()
        if stream is None:
            self._arrivals.put(None)
            raise OSError(f"{self.address} is closed")
        return stream

    def forget(self) -> None:
        pass  # nothing of it is shared with the parent

    def close(self) -> None:
        self._closed = True
        self._transport.forget(self._name)
        self._turn_away()

    def _turn_away(self) -> None:
        """Close what was not accepted, as a kernel does."""
        try:
            while True:
                stream = self._arrivals.get_nowait()
                if stream is not None:
                    stream.close()
        except queue.Empty:
            self._arrivals.put(None)


class MemoryTransport:
    """One instance is one network."""

    scheme = "memory"

    def __init__(self) -> None:
        self._listeners: dict[str, _MemoryListener] = {}
        self._lock = threading.Lock()  # guards _listeners
        self._ports = itertools.count(1)

    def listen(self, host: str, port: int) -> Listener:
        name = f"{host or 'host'}-{port or next(self._ports)}"
        listener = _MemoryListener(self, name)
        with self._lock:
            self._listeners[name] = listener
        return listener

    def connect(self, address: str, timeout: float) -> Stream:
        with self._lock:
            listener = self._listeners.get(address.removeprefix("memory://"))
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens on {address}")
        near, far = socket.socketpair()
        listener.arrive(SocketStream(far))
        return SocketStream(near)

    def forget(self, name: str) -> None:
        with self._lock:
            self._listeners.pop(name, None)
