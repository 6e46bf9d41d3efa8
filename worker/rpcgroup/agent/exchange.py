"""The bytes of one handshake over a stream: exact reads, bounded in time as a whole."""

from __future__ import annotations

import time

from rpcgroup.transport.base import Stream

__all__ = ["Exchange"]


class Exchange:
    """`send` and `receive` for `rpcgroup.wire.handshake`, between `begin` and `end`, which gives the stream back.

    All of it may take `timeout` seconds; after that both raise `TimeoutError`. A peer that sends one byte at a
    time gains nothing.
    """

    def __init__(self, stream: Stream, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self.received = 0
        """Bytes so far."""

    def begin(self) -> None:
        self._stream.handshake(self._timeout)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._limit()
            try:
                view = view[self._stream.send(view) :]
            except BlockingIOError:
                raise self._late() from None

    def receive(self, count: int) -> bytes:
        """Raises `ConnectionResetError` where the stream ends before."""
        data = bytearray(count)
        view = memoryview(data)
        while view:
            self._limit()
            try:
                n = self._stream.receive(view)
            except BlockingIOError:
                raise self._late() from None
            if n == 0:
                raise ConnectionResetError("the peer closed the connection in the handshake")
            self.received += n
            view = view[n:]
        return bytes(data)

    def end(self) -> None:
        self._stream.set_handshake_timeout(None)

    def _limit(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self._late()
        self._stream.set_handshake_timeout(max(remaining, 0.001))

    def _late(self) -> TimeoutError:
        return TimeoutError(f"no answer to the handshake within {self._timeout:.1f} s")
