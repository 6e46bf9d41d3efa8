"""The future of a call: its answer is read by whoever waits, and decoded by whoever wants the value first."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rpcgroup.agent.call import Call
from rpcgroup.futures import Future

__all__ = ["CallFuture"]

T = TypeVar("T")


class CallFuture(Future[T], Call):
    """Lifecycle: pending -> answered (its link has read the answer) -> settled (decoded).

    Between the last two it stands in its link's `unsettled`; whoever takes it out settles it. Where that is a
    thread in `wait`, torch's part is left for later: most futures are let go of before anybody looks at it.
    """

    is_future = True

    # What is set for every call; the rest has defaults in the classes and lives in a dict that is rarely made.
    __slots__ = ("_retrieved", "_settled", "_value", "answered", "deadline", "frame", "id", "link", "lock", "timeout_ms")

    def __init__(self) -> None:
        super(torch.futures.Future, self).__init__([])
        self._settled = self._retrieved = self.answered = False
        self.lock = None
        self.timeout_ms = self.deadline = 0

    def wait(self, non_blocking: bool = False) -> T:
        if not self._settled:
            link = self.link
            link.activity += 1
            if not self.answered:
                self._await_answer()
            if link.unsettled.pop(self.id, None) is not None:
                self._decode()
                link.unmirrored[self.id] = weakref.ref(self)
                if link.agent.monitor.cold:
                    link.agent.monitor.wake()
                if self._callbacks:
                    # This thread wants the value and must not run others' callbacks.
                    link.agent.pool.submit(self._run_callbacks)
            elif not self._settled:
                self._block()
        self._retrieved = True
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def done(self) -> bool:
        return self._settled or self.answered

    def cancel(self) -> bool:
        """Give the call up: its function will not start if it has not. False where it is answered already."""
        return not self.answered and self.link.cancel(self)

    def settle(self) -> None:
        """The link's, which has taken it out of `unsettled`: decode, and run the callbacks in this thread."""
        self._decode()
        self.mirror()
        self._run_callbacks()

    def mirror(self) -> None:
        """The link's: fill in torch's part, for who waits in C++ (`collect_all`)."""
        if self._error is None:
            super(torch.futures.Future, self).set_result(self._value)
        else:
            self._mirror_error(self._error)

    @property
    def waited(self) -> bool:
        """A thread is waiting for the answer and will settle it."""
        return self.id in self.link.claimed

    def _await_answer(self) -> None:
        claimed, mine = self.link.claimed, object()
        if claimed.setdefault(self.id, mine) is not mine:
            self._block()  # another thread waits through the link
            return
        try:
            self.link.wait(self)
        finally:
            claimed.pop(self.id, None)

    def _when_settled(self, callback: Callable[[Any], Any]) -> None:
        super()._when_settled(callback)
        if self._settled:
            return
        if not self.answered:
            self.link.expect_eager()
        elif self.link.unsettled.pop(self.id, None) is not None:
            self.settle()

    def _claim_settling(self) -> bool:
        return False

    def __del__(self) -> None:
        try:
            if self._settled and self.link.unmirrored.pop(self.id, None) is not None:
                self.mirror()  # a `collect_all` may outlive this object
        except Exception:
            pass  # at interpreter exit even torch may be gone
        if self._error is not None:
            super().__del__()

    def _decode(self) -> None:
        try:
            self._value = self.result()
        except BaseException as exc:
            # Without the traceback, whose frames know this future: the cycle would keep an unheard failure.
            self._error = exc.with_traceback(None)
        self.frame = None
        self._settled = True
