"""The stream of membership changes that one reader follows."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from rpcgroup.errors import GroupError
from rpcgroup.membership.tracker import Change

__all__ = ["Changes"]

LIMIT: Final = 10_000
"""Changes that a reader may lag behind: more than any group has members."""


class Changes:
    """An iterator and an asynchronous iterator; `close` it, or let it go, when done.

    Raises `GroupError` where the reader has fallen behind by more than `LIMIT` changes.
    """

    def __init__(self, unsubscribe: Callable[[Changes], None], before_blocking: Callable[[], None]) -> None:
        self._unsubscribe = unsubscribe
        self._before_blocking = before_blocking
        self._arrived = threading.Condition()  # guards everything below
        self._waiting: deque[Change] = deque()
        self._ended = False
        self._overrun = False
        self._wake: list[Callable[[], object]] = []

    def put(self, change: Change) -> None:
        """The group's."""
        with self._arrived:
            if len(self._waiting) >= LIMIT:
                self._overrun = True
                self._waiting.clear()
            self._waiting.append(change)
            self._wake_all()

    def end(self) -> None:
        with self._arrived:
            self._ended = True
            self._wake_all()

    def close(self) -> None:
        self._unsubscribe(self)
        self.end()

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Changes:
        return self

    def __next__(self) -> Change:
        change = self.get(None)
        if change is None:
            raise StopIteration
        return change

    def get(self, timeout: float | None = None) -> Change | None:
        """The next change; None at the end, or after `timeout` seconds."""
        self._before_blocking()
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or self._ended or self._overrun, timeout)
            return self._take()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Change:
        loop = asyncio.get_running_loop()
        while True:
            woken = asyncio.Event()
            wake = partial(loop.call_soon_threadsafe, woken.set)
            with self._arrived:
                change = self._take()
                if change is not None:
                    return change
                if self._ended:
                    raise StopAsyncIteration
                self._wake.append(wake)
            await woken.wait()

    def _take(self) -> Change | None:
        if self._overrun:
            self._overrun = False
            raise GroupError(
                f"this reader fell behind by more than {LIMIT} membership changes: read members() anew"
            )
        return self._waiting.popleft() if self._waiting else None

    def _wake_all(self) -> None:
        self._arrived.notify_all()
        wake, self._wake = self._wake, []
        for call in wake:
            try:
                call()
            except RuntimeError:
                pass  # its event loop is closed
