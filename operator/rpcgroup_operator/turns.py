"""Who may ask the API server next: a few requests at once, and the groups in turn.

A group that is to get a thousand pods has a thousand requests; one that comes meanwhile waits for one of them, not
for all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rpcgroup_operator.members import GroupKey

__all__ = ["Turns"]


class Turns:
    """At most `limit` at once. Belongs to the event loop."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: dict[GroupKey, deque[asyncio.Future[None]]] = {}  # in the order of their turns

    @asynccontextmanager
    async def turn(self, group: GroupKey) -> AsyncIterator[None]:
        await self._acquire(group)
        try:
            yield
        finally:
            self._free += 1
            self._next()

    async def _acquire(self, group: GroupKey) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        called = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():  # it was its turn already: to the next
                self._free += 1
                self._next()
            raise

    def _next(self) -> None:
        while self._free and self._waiting:
            group, queue = next(iter(self._waiting.items()))
            del self._waiting[group]
            called = queue.popleft()
            if queue:
                self._waiting[group] = queue  # to the end of the line
            if not called.done():
                self._free -= 1
                called.set_result(None)
