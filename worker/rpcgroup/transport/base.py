"""The interface of a transport: three small classes, and nothing above them knows more of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["READ_TIMEOUT", "Listener", "Stream", "Transport"]

READ_TIMEOUT = 1.0
"""Seconds after which a blocking read gives up with `BlockingIOError`, so that its caller can look around."""

Buffer = bytes | bytearray | memoryview


class Stream(Protocol):
    """A connected, reliable, ordered stream of bytes. Every method raises `OSError` when it is broken.

    One thread may send while another receives; no two may send, or receive, at once. What a send has not taken is
    what the next one has to begin with.
    """

    def handshake(self, timeout: float) -> None:
        """What the transport has to say before the first byte; at both ends, after `connect` and `accept`.

        Raises `HandshakeError` where the peer is none of this group, `TimeoutError` after `timeout` seconds.
        """
        ...

    def fileno(self) -> int:
        """A descriptor that epoll reports readable when `try_receive` has something to say."""
        ...

    def send(self, data: Buffer) -> int:
        """Send some of `data`, waiting for room; returns how many bytes were taken."""
        ...

    def try_send(self, data: Buffer) -> int:
        """As `send`, or `BlockingIOError` where there is no room."""
        ...

    def send_many(self, buffers: Sequence[Buffer]) -> int:
        """As `send`, from several buffers in order, without joining them."""
        ...

    def receive(self, into: memoryview) -> int:
        """Receive at least one byte; 0 at the end; `BlockingIOError` after `READ_TIMEOUT`."""
        ...

    def receive_whole(self, into: memoryview) -> int:
        """As `receive`, until `into` is full: one call instead of many. Less at the end, or after `READ_TIMEOUT`."""
        ...

    def try_receive(self, into: memoryview) -> int:
        """As `receive`, or `BlockingIOError` at once."""
        ...

    def wait_readable(self, timeout: float) -> bool:
        """Whether there is something to receive within `timeout` seconds."""
        ...

    def silence(self) -> float:
        """Seconds for which the peer's host owes a sign of life; 0 where it owes none."""
        ...

    def set_handshake_timeout(self, timeout: float | None) -> None:
        """Bound each send and receive by `timeout` seconds (`TimeoutError`); None: back to normal."""
        ...

    def forget(self) -> None:
        """In a forked child: give the inherited descriptor back, and leave the connection to the parent."""
        ...

    def shutdown(self) -> None:
        """Fail whoever is inside another method, and everybody after; the descriptor stays. Idempotent."""
        ...

    def close(self) -> None:
        """`shutdown`, and give the descriptor back: nobody may be inside another method. Idempotent."""
        ...


class Listener(Protocol):
    """A place where streams arrive."""

    @property
    def address(self) -> str:
        """What `Transport.connect` takes."""
        ...

    def accept(self) -> Stream:
        """The next stream; raises `OSError` once closed."""
        ...

    def close(self) -> None: ...

    def forget(self) -> None:
        """As `Stream.forget`."""
        ...


class Transport(Protocol):
    """A kind of connection, named by the scheme of its addresses."""

    scheme: str

    def listen(self, host: str, port: int) -> Listener: ...

    def connect(self, address: str, timeout: float) -> Stream:
        """Raises `ConnectionRefusedError` where nobody listens, `TimeoutError` or `OSError` otherwise."""
        ...
