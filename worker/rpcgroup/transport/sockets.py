"""A stream over a connected stream socket: what tcp and memory share."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence
from typing import Final

from rpcgroup.transport.base import READ_TIMEOUT, Buffer

__all__ = ["SocketStream"]

_READ_TIMEOUT: Final = struct.pack("ll", int(READ_TIMEOUT), int(READ_TIMEOUT % 1 * 1e6))
_NO_TIMEOUT: Final = struct.pack("ll", 0, 0)


class SocketStream:
    """Reads are bounded by the kernel's `SO_RCVTIMEO`: Python's `settimeout` would add a poll to each."""

    __slots__ = ("_poll", "_socket", "fileno", "receive", "send")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._poll: select.poll | None = None
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _READ_TIMEOUT)
        # Bound methods as attributes: the hot path saves a Python frame per system call.
        self.send = sock.send
        self.receive = sock.recv_into
        self.fileno = sock.fileno

    def handshake(self, timeout: float) -> None:
        pass

    def try_send(self, data: Buffer) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT)

    def send_many(self, buffers: Sequence[Buffer]) -> int:
        return self._socket.sendmsg(buffers)

    def receive_whole(self, into: memoryview) -> int:
        return self._socket.recv_into(into, 0, socket.MSG_WAITALL)

    def try_receive(self, into: memoryview) -> int:
        return self._socket.recv_into(into, 0, socket.MSG_DONTWAIT)

    def wait_readable(self, timeout: float) -> bool:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._socket.fileno(), select.POLLIN)
        return bool(self._poll.poll(max(0.0, timeout) * 1000))

    def silence(self) -> float:
        return 0.0

    def set_handshake_timeout(self, timeout: float | None) -> None:
        value = _NO_TIMEOUT if timeout is None else struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, _READ_TIMEOUT if timeout is None else value
        )

    def forget(self) -> None:
        self._socket.close()

    def shutdown(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is over already

    def close(self) -> None:
        self.shutdown()
        self._socket.close()
