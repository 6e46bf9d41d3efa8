"""A call under way, at its caller: what a link needs of it, and the one that a synchronous caller waits for."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from rpcgroup.cuda.events import Events
from rpcgroup.wire.frames import Body, Frame
from rpcgroup.wire.messages import MessageType

if TYPE_CHECKING:
    from rpcgroup.agent.link import Link

__all__ = ["Call"]

_RESPONSE: Final = int(MessageType.RESPONSE)
_EXCEPTION: Final = int(MessageType.EXCEPTION)


class Call:
    """Answered once, by whoever takes it out of its link's `pending`.

    `frame` is the answer, undecoded: the thread that wants the value decodes it. `deadline` is on the monotonic
    clock, 0 = none. `lock` wakes the one thread that waits; a fresh one per wait, so no wake-up is stale.
    """

    # Class attributes as defaults: a call is made for every call, and most are never set.
    link: Link
    id: int
    timeout_ms = 0
    deadline = 0.0
    answered = False
    error: BaseException | None = None
    frame: Frame | None = None
    lock: _thread.LockType | None = None
    withdraw: Callable[[], None] | None = None
    """Of a call within an autograd context: it has failed, and no gradient will come back for what it sent."""
    is_future = False
    """Nobody may be waiting for it: a `CallFuture`."""

    def complete(self, frame: Frame) -> None:
        """The answer has been read. Its link's reader calls it, and holds the read lock."""
        self.frame = frame
        self.answered = True
        if self.lock is not None:
            self._wake()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.answered = True
        if self.lock is not None:
            self._wake()

    def _wake(self) -> None:
        assert self.lock is not None
        try:
            self.lock.release()
        except RuntimeError:
            pass  # a promotion had woken it already

    def result(self) -> Any:
        """The value, or raise what went wrong. Only once answered."""
        if self.error is not None:
            if self.withdraw is not None:
                self.withdraw()
            raise self.error
        assert self.frame is not None
        kind, flags, _, _, _, body = self.frame
        if kind == _RESPONSE and not flags:
            return None
        if kind == _EXCEPTION and self.withdraw is not None:
            self.withdraw()
        if body is not None and (body.events is not None or self.link.peer.answers_reach_devices):
            return self._result_on_devices(body.events, kind, flags, body)
        return self.link.decode_answer(kind, flags, body)

    def _result_on_devices(self, events: Events | None, kind: int, flags: int, body: Body) -> Any:
        """The thread that decodes it waits for it."""
        if events is None:
            return self.link.decode_answer(kind, flags, body)
        events.wait()  # what decoding enqueues is ordered too
        value = self.link.decode_answer(kind, flags, body)
        events.hold_host()
        return value

    def wait(self) -> Any:
        if not self.answered:
            try:
                self.link.reader.wait(self)
            except BaseException:  # KeyboardInterrupt: nobody will ask for the answer
                self.link.cancel(self)
                raise
        return self.result()
