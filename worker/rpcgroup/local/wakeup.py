"""What ends the driver's wait: another thread, or a signal."""

from __future__ import annotations

import signal
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Wakeup", "collecting"]


class Wakeup:
    """A descriptor that becomes readable when `set` was called; many calls are one wake."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    @property
    def writer(self) -> int:
        """For `signal.set_wakeup_fd`."""
        return self._writer.fileno()

    def set(self) -> None:
        """From any thread."""
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            pass  # it is full of wakes already

    def clear(self) -> None:
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@contextmanager
def collecting(wakeup: Wakeup, *numbers: signal.Signals) -> Iterator[deque[signal.Signals]]:
    """Wake for each of these signals and for SIGCHLD; the deque gets those received, apart from SIGCHLD.

    A handler may run between any two lines of the program, so it does nothing else. In the main thread only,
    as Python asks.
    """
    received: deque[signal.Signals] = deque()

    def handle(number: int, _: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            received.append(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in (*numbers, signal.SIGCHLD)}
    descriptor = signal.set_wakeup_fd(wakeup.writer, warn_on_full_buffer=False)
    try:
        yield received
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
