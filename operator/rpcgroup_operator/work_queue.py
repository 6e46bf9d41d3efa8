"""Which group is reconciled next: each at most once in the queue and once at work, later after failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from rpcgroup_operator.members import GroupKey

__all__ = ["WorkQueue"]

RETRY_FIRST: Final = 0.1
RETRY_LAST: Final = 60.0
REST: Final = 0.1
"""Seconds between two times at work on one key: what happens meanwhile is one reconcile, not a hundred."""


class WorkQueue:
    """`work(key)` does one reconcile and returns the seconds after which it wants another, or None.

    A key that is added while it is at work, or soon after, is worked on once more after a rest. One that raises is
    tried again with growing pauses. `run` ends when it is cancelled.
    """

    def __init__(self, work: Callable[[GroupKey], Awaitable[float | None]], workers: int) -> None:
        self._work = work
        self._workers = workers
        self._ready: asyncio.Queue[GroupKey] = asyncio.Queue()  # bounded by the number of groups
        self._queued: set[GroupKey] = set()
        self._working: set[GroupKey] = set()
        self._again: set[GroupKey] = set()
        self._timers: dict[GroupKey, asyncio.TimerHandle] = {}
        self._failures: dict[GroupKey, int] = {}
        self._rests_until: dict[GroupKey, float] = {}
        self.done = 0
        """Reconciles finished, well or badly: what a liveness probe looks at."""

    @property
    def busy(self) -> bool:
        return bool(self._queued or self._working)

    def add(self, key: GroupKey) -> None:
        """Something has changed."""
        rest = self._rests_until.get(key, 0.0) - asyncio.get_running_loop().time()
        if rest > 0 and key not in self._working:
            self.add_after(key, rest)
        else:
            self._enqueue(key)

    def add_after(self, key: GroupKey, seconds: float) -> None:
        """The earliest of several counts."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= at:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(at, self._due, key)

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._serve()) for _ in range(self._workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def _due(self, key: GroupKey) -> None:
        del self._timers[key]
        self._enqueue(key)

    def _enqueue(self, key: GroupKey) -> None:
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._working.add(key)
            try:
                after = await self._work(key)
                self._failures.pop(key, None)
            except Exception:  # told by the work itself
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                after = min(RETRY_LAST, RETRY_FIRST * 2.0 ** min(failures - 1, 12))
            finally:
                self._working.discard(key)
                self.done += 1
            self._let_rest(key, after)
            if after is not None:
                self.add_after(key, after)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    def _let_rest(self, key: GroupKey, after: float | None) -> None:
        if after is None:  # gone, or nobody's business of ours
            self._rests_until.pop(key, None)
        else:
            self._rests_until[key] = asyncio.get_running_loop().time() + REST
