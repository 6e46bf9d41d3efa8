"""The future of a call: its answer is read by whoever waits, and decoded by whoever wants the value first.

It is a `torch.futures.Future`, whose C++ part costs as much to make and to fill in as the rest of the call. So
that part is made when torch asks for it, which it does in one place: `collect_all`, by `torch._C._collect_all`
(ADR 0009).
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import torch

from rpcgroup.agent.call import Call
from rpcgroup.cuda.events import Events
from rpcgroup.futures import Future, collect_all
from rpcgroup.wire.frames import Body, Frame
from rpcgroup.wire.messages import MessageType

__all__ = ["CallFuture"]

T = TypeVar("T")
_RESPONSE: Final = int(MessageType.RESPONSE)


class CallFuture(Future[T], Call):
    """Lifecycle: pending -> answered (its link has read the answer) -> settled (decoded).

    Between the last two it stands in its link's `unsettled`; whoever takes it out settles it. Made by `pending`.
    """

    is_future = True

    # What is set for every call; the rest has defaults in the classes and lives in a dict that is rarely made.
    __slots__ = ("_settled", "_value", "answered", "deadline", "frame", "id", "link", "timeout_ms")

    _has_torch_part = False
    _mirrored = False

    @classmethod
    def pending(cls) -> CallFuture[Any]:
        """A new one. Not by calling the class: that would insist on torch's part."""
        future: CallFuture[Any] = cls.__new__(cls)
        future._settled = future.answered = False
        if _collect_all is None:
            super(torch.futures.Future, future).__init__([])
            future._has_torch_part = True
        return future

    def wait(self, non_blocking: bool = False) -> T:
        if not self._settled:
            link = self.link
            link.activity = -self.id
            if not self.answered:
                self._await_answer()
            if link.unsettled.pop(self.id, None) is not None:
                self._decode()
                if self._callbacks:
                    # This thread wants the value and must not run others' callbacks.
                    link.agent.pool.submit(self._run_callbacks)
            elif not self._settled:
                self._block()
        if self._error is not None:
            self._retrieved = True
            raise self._error
        if self._events is not None:
            self._events.take_over(non_blocking)
        value: T = self._value
        return value

    def value(self) -> T:
        if self.answered and not self._settled:
            self._block()  # until it is decoded, which this thread does where nobody else has begun to
        return super().value()

    def done(self) -> bool:
        return self._settled or self.answered

    def cancel(self) -> bool:
        """Give the call up: its function will not start if it has not. False where it is answered already."""
        return not self.answered and self.link.cancel(self)

    def settle(self) -> None:
        """The link's, which has taken it out of `unsettled`: decode, and run the callbacks in this thread."""
        self._decode()
        self._run_callbacks()

    def complete(self, frame: Frame) -> None:
        if frame[0] == _RESPONSE and not frame[1] and not self.eager:
            # An answer without a value: there is nothing to decode later.
            self._value = None
            self._settled = self.answered = True
            if self.lock is not None:
                self._wake()
            # Settled first, then looked: a callback or a torch part that came meanwhile is seen here or there.
            if self.eager or self._has_torch_part:
                self.link.agent.pool.submit(self._finish)
            return
        link = self.link
        if self.eager:
            link.eager = True
            link.eager_calls -= 1
        # Before it is answered: whoever sees that looks there, and whoever takes it out settles it at once.
        self.frame = frame
        link.unsettled[self.id] = self
        super().complete(frame)

    def _finish(self) -> None:
        if self._has_torch_part:
            self._mirror()
        self._run_callbacks()

    def materialize(self) -> None:
        """Make torch's part, and fill it in as soon as there is a value."""
        with _torch_part_lock:
            if self._has_torch_part:
                return
            self._make_torch_part()
            self._has_torch_part = True
        # From here on whoever settles it fills torch's part in; if that has been done, it is done here.
        if self._settled:
            self._mirror()
        elif _collect_all is not None:
            self._when_settled(_nothing)

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
            self.link.reader.wait(self)
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

    def _mirror(self) -> None:
        """Fill torch's part in, once; who waits in C++ goes on."""
        with _torch_part_lock:
            if self._mirrored:
                return
            self._mirrored = True
        if self._error is not None:
            self._mirror_error(self._error)
        elif self._events is None:
            super(torch.futures.Future, self).set_result(self._value)
        else:
            with self._events.after():  # torch's part records events of its own
                super(torch.futures.Future, self).set_result(self._value)

    def _placement(self) -> tuple[tuple[torch.device, ...], int]:
        on_devices = self.link.agent.on_devices
        return (on_devices.devices, on_devices.priority) if on_devices is not None else ((), 0)

    def _result_on_devices(self, events: Events | None, kind: int, flags: int, body: Body) -> Any:
        """Who decodes it need not be who waits for it: on streams that nothing else waits for."""
        link = self.link
        if events is None or link.peer.answers_reach_devices:
            accelerator = link.agent.accelerator
            assert accelerator is not None
            decode = partial(link.decode_answer, kind, flags, body)
            value, self._events = accelerator.brought(events, decode)
            return value
        _, priority = self._placement()
        with events.after((), priority):
            value = link.decode_answer(kind, flags, body)
            self._events = events.renewed()
        return value

    def _decode(self) -> None:
        try:
            self._value = self.result()
        except BaseException as exc:
            # Without the traceback, whose frames know this future: the cycle would keep an unheard failure.
            self._error = exc.with_traceback(None)
        self.frame = None
        self._settled = True
        if self._has_torch_part:
            self._mirror()


def _nothing(_: object) -> None:
    """A callback for its own sake: the answer is read and settled without a waiter."""


_torch_part_lock = _thread.allocate_lock()  # guards _has_torch_part and _mirrored of every future
_collect_all: Any = getattr(torch._C, "_collect_all", None)


def _collect_all_of_calls(futures: list[Any]) -> Any:
    """torch's: done with the first error, or when all are done. Here without their C++ parts, where one is ours."""
    if any(isinstance(future, Future) for future in futures):
        return collect_all(futures)
    return _collect_all(futures)


if _collect_all is not None:
    torch._C._collect_all = _collect_all_of_calls
