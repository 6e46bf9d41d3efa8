"""The future of a call: its answer is read by whoever waits, and decoded by whoever wants the value first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rpcgroup.agent.call import Call
from rpcgroup.futures import Future

__all__ = ["CallFuture"]

T = TypeVar("T")


class CallFuture(Future[T], Call):
    """Lifecycle: pending -> answered (its link has read the answer) -> settled (decoded, torch's part filled in).

    Between the last two it stands in its link's `unsettled`; whoever takes it out settles it.
    """

    def __init__(self) -> None:
        super(torch.futures.Future, self).__init__([])

    @property
    def future(self) -> CallFuture[T]:  # type: ignore[override]
        return self  # an attribute would make a cycle of each, for the garbage collector to break

    def wait(self, non_blocking: bool = False) -> T:
        if not self._settled:
            if not self.answered:
                self._await_answer()
            if self.link.unsettled.pop(self.id, None) is not None:
                self._decode()
                if self._callbacks:
                    # This thread wants the value and must not run others' callbacks.
                    self.link.agent.pool.submit(self._run_callbacks)
            elif not self._settled:
                self._block()
        return self._get()

    def done(self) -> bool:
        return self._settled or self.answered

    def cancel(self) -> bool:
        """Give the call up: its function will not start if it has not. False where it is answered already."""
        return not self.answered and self.link.cancel(self)

    def settle(self) -> None:
        """The link's, which has taken it out of `unsettled`: decode, and run the callbacks in this thread."""
        self._decode()
        self._run_callbacks()

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

    def _decode(self) -> None:
        try:
            value = self.result()
        except BaseException as exc:
            # Without the traceback, whose frames know this future: the cycle would keep an unheard failure.
            self._settle(None, exc.with_traceback(None))
        else:
            self._settle(value, None)
        self.frame = None
