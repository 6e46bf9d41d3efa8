"""What is to be done once a device has come so far, without a thread that waits for it.

One place polls the events, rather than whoever uses a transfer next: memory of another process that waits to be
released must not wait for a use that may never come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rpcgroup.cuda.runtime import Event, Runtime, Stream

__all__ = ["Completions"]

SHORTEST_POLL: Final = 0.001
LONGEST_POLL: Final = 0.05
"""Seconds between two looks: twice as many after each that found nothing done."""


class _Kept:
    """In the place of an action: there is nothing to do but to drop it."""

    __slots__ = ("_thing",)

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __call__(self) -> None:
        pass


class Completions:
    """Thread-safe without a lock: each entry is taken out by one thread, which puts it back or carries it out.

    `later(seconds, job)` has a job done then that does not block; `submit(action)` an action, which may for a moment.
    """

    def __init__(
        self,
        runtime: Runtime,
        later: Callable[[float, Callable[[], None]], None],
        submit: Callable[[Callable[[], None]], object],
    ) -> None:
        self._runtime = runtime
        self._later = later
        self._submit = submit
        self._waiting: deque[tuple[Sequence[Event], Callable[[], None]]] = deque()
        self._pause = SHORTEST_POLL
        self._scheduled = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def behind(self, streams: Sequence[Stream], action: Callable[[], None]) -> None:
        """Have `action` done once all is done that is enqueued on the streams by now, or the device has failed.

        Raises what an event cannot be recorded for; the work may go on all the same, so that is tried again.
        """
        self._add(streams, action)

    def keep(self, thing: object, stream: Stream) -> None:
        """Refer to `thing` until then."""
        self._add((stream,), _Kept(thing))

    def poll(self) -> bool:
        """Look now; whether anything is over that was waited for. Does not block."""
        waiting = self._waiting
        found = False
        for _ in range(len(waiting)):
            try:
                events, action = waiting.popleft()
            except IndexError:
                break
            if not all(map(self._is_over, events)):
                waiting.append((events, action))
                continue
            found = True
            if not isinstance(action, _Kept):
                self._submit(action)
        return found

    def _add(self, streams: Sequence[Stream], action: Callable[[], None]) -> None:
        try:
            self._record(streams, action)
        except Exception:
            self._later(LONGEST_POLL, partial(self._record_or_act, streams, action))
            raise

    def _record(self, streams: Sequence[Stream], action: Callable[[], None]) -> None:
        self._waiting.append(([self._runtime.record(stream) for stream in streams], action))
        self._schedule()

    def _record_or_act(self, streams: Sequence[Stream], action: Callable[[], None]) -> None:
        try:
            self._record(streams, action)
        except Exception:
            self._submit(action)  # the device has failed, and does no more

    def _is_over(self, event: Event) -> bool:
        try:
            return self._runtime.is_done(event)
        except Exception:
            return True  # the device has failed and does no more; whoever waits for its work is told

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._later(self._pause, self._look)

    def _look(self) -> None:
        self._scheduled = False
        self._pause = SHORTEST_POLL if self.poll() else min(2 * self._pause, LONGEST_POLL)
        if self._waiting:
            self._schedule()
        else:
            self._pause = SHORTEST_POLL
