"""One call under way, at its caller."""

from __future__ import annotations

import _thread
from typing import TYPE_CHECKING, Any

from rpcgroup.wire.frames import Frame

if TYPE_CHECKING:
    from rpcgroup.agent.link import Link
    from rpcgroup.futures import Future

__all__ = ["Call"]


class Call:
    """Completed once, by whoever takes it out of its link's `pending`.

    `frame` is the answer, undecoded: the thread that wants the value decodes it. `deadline` is on the monotonic
    clock, 0 = none. `lock` wakes the one thread that waits; a fresh one per wait, so no wake-up is stale.
    """

    __slots__ = ("deadline", "done", "error", "frame", "future", "id", "link", "lock", "timeout_ms")

    def __init__(self, link: Link, id: int, timeout_ms: int, deadline: float) -> None:
        self.link = link
        self.id = id
        self.timeout_ms = timeout_ms
        self.deadline = deadline
        self.done = False
        self.error: BaseException | None = None
        self.frame: Frame | None = None
        self.lock: _thread.LockType | None = None
        self.future: Future[Any] | None = None

    def complete(self, frame: Frame) -> None:
        self.frame = frame
        self._finish()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.done = True
        lock = self.lock
        if lock is not None:
            try:
                lock.release()
            except RuntimeError:
                pass  # a promotion had woken it already

    def result(self) -> Any:
        """The value, or raise what went wrong. Only once `done`."""
        if self.error is not None:
            raise self.error
        frame = self.frame
        assert frame is not None
        if frame.kind == 1 and not frame.flags:
            return None
        return self.link.decode_answer(frame)

    def wait(self) -> Any:
        if not self.done:
            self.link.wait(self)
        return self.result()
