"""The future of a call: torch's, awaitable, with its answer decoded by whoever wants it first.

A `Future` is a `torch.futures.Future`, so `collect_all` and `wait_all` take it. Settling fills in torch's part.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

import torch


__all__ = ["Future"]

T = TypeVar("T")
S = TypeVar("S")
_log = logging.getLogger(__name__)

before_blocking: list[Callable[[], None]] = []
"""Called before a thread blocks in a future: an agent whose reactor it is hands the leadership over."""


class _Link(Protocol):
    agent: Any

    def wait(self, call: Any) -> None: ...

    def expect_eager(self) -> None: ...

    def cancel(self, call: Any) -> bool: ...


class _Call(Protocol):
    link: Any
    done: bool

    def result(self) -> Any: ...


class Future(torch.futures.Future[T]):
    """The result of an `rpc_async`, or of a `then`, or one to be set by hand. Thread-safe.

    Lifecycle: pending -> answered (its call is done; only with a call) -> settled.

    No locks, since a future is made for every call: `_settler` and `_waiter` are taken by whoever gets its entry
    into the instance's dict first, and every callback is run by whoever pops it from the list.
    """

    # Defaults of the instance's attributes: most are never set.
    _call: _Call | None = None
    _settled = False
    _retrieved = False
    _value: Any = None
    _error: BaseException | None = None
    eager = False
    """Somebody wants to be told as soon as it is settled."""

    def __init__(self) -> None:
        # Past torch's Python __init__, which only converts a list of devices.
        super(torch.futures.Future, self).__init__([])

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, non_blocking: bool = False) -> T:
        """The value, or raises what went wrong; blocks. On CPU `non_blocking` has no effect."""
        if not self._settled:
            call = self._call
            if call is not None and self._take("_waiter"):
                try:
                    if not call.done:
                        call.link.wait(call)
                finally:
                    del self.__dict__["_waiter"]
                self._settle_answered()
            if not self._settled:
                self._block()
        return self._get()

    def value(self) -> T:
        """The value of a done future; raises what went wrong, `RuntimeError` where it is not done."""
        if not self.done():
            raise RuntimeError("the future is not done")
        return self._get()

    def done(self) -> bool:
        return self._settled or (self._call is not None and self._call.done)

    @property
    def settled(self) -> bool:
        """Done, and torch's part filled in."""
        return self._settled

    @property
    def waited(self) -> bool:
        """A thread is waiting through the call and will settle it."""
        return "_waiter" in self.__dict__

    def __await__(self) -> Generator[Any, None, T]:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        def wake_threadsafe(_: Future[T]) -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:
                pass  # the loop is closed: nobody waits any more

        self.add_done_callback(wake_threadsafe)
        try:
            yield from woken
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self.wait()

    def _get(self) -> T:
        if not self._settled:
            self._settle_answered()
            if not self._settled:
                self._block()
        self._retrieved = True
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def _block(self) -> None:
        for hook in before_blocking:
            hook()
        woken = _thread.allocate_lock()
        woken.acquire()
        self._when_settled(lambda _: woken.release())
        woken.acquire()

    # -- callbacks ----------------------------------------------------------------------------------------

    def then(self, callback: Callable[[Future[T]], S]) -> Future[S]:  # type: ignore[override]
        """A future of what `callback(self)` returns or raises, run once this one is done."""
        result: Future[S] = Future()

        def run(done: Future[T]) -> None:
            try:
                result.set_result(callback(done))
            except Exception as exc:
                result.set_exception(exc)

        self._when_settled(run)
        return result

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:  # type: ignore[override]
        """As `then`, without a result; what it raises is logged."""
        self._when_settled(callback)

    def _when_settled(self, callback: Callable[[Future[T]], Any]) -> None:
        if self._settled:
            self._run_callback(callback)
            return
        self.eager = True
        self.__dict__.setdefault("_callbacks", []).append(callback)
        # Appended first, then looked again: whoever settles it after this sees the callback.
        call = self._call
        if self._settled:
            self._run_callbacks()
        elif call is not None:
            if call.done:
                self.settle()
            else:
                call.link.expect_eager()

    def _run_callback(self, callback: Callable[[Future[T]], Any]) -> None:
        try:
            callback(self)
        except Exception:
            _log.exception("a callback of a future failed")

    # -- settling -----------------------------------------------------------------------------------------

    def set_result(self, result: T) -> None:
        """Settle by hand; raises `RuntimeError` where that has happened already."""
        if "_settler" in self.__dict__ and not self._settled:
            super().set_result(result)  # torch's own set_exception comes back here
            return
        self._claim_or_raise()
        self._settle(result, None)
        self._run_callbacks()

    def set_exception(self, result: BaseException) -> None:  # type: ignore[override]
        """Settle by hand with an error."""
        self._claim_or_raise()
        self._settle(None, result)
        self._run_callbacks()

    def cancel(self) -> bool:
        """Give the call up: its function will not start if it has not. False where it is done already."""
        call = self._call
        return call is not None and not call.done and bool(call.link.cancel(call))

    def attach(self, call: _Call) -> None:
        """The agent's: this future is of that call."""
        self._call = call

    def settle(self) -> None:
        """The agent's: take the answer, which is here, and run the callbacks in this thread."""
        if self._settle_from_call():
            self._run_callbacks()

    def _settle_answered(self) -> None:
        """Settle in a thread that wants the value and must not run others' callbacks."""
        if self._settle_from_call() and "_callbacks" in self.__dict__:
            assert self._call is not None
            self._call.link.agent.pool.submit(self._run_callbacks)

    def _settle_from_call(self) -> bool:
        call = self._call
        if call is None or not call.done or not self._take("_settler"):
            return False
        try:
            value = call.result()
        except BaseException as exc:
            self._settle(None, exc)
        else:
            self._settle(value, None)
        return True

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if error is None:
            self._value = value
            super(torch.futures.Future, self).set_result(value)
            self._settled = True
            return
        self._error = error
        if isinstance(error, Exception):
            super().set_exception(error)  # type: ignore[arg-type]
        else:
            super().set_exception(RuntimeError(repr(error)))  # type: ignore[arg-type]
        self._settled = True

    def _run_callbacks(self) -> None:
        callbacks: list[Callable[[Future[T]], Any]] = self.__dict__.get("_callbacks", [])
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                return
            self._run_callback(callback)

    def _take(self, entry: str) -> bool:
        """Whether this thread is the first to ask for `entry`; one atomic operation of the dict."""
        mine = object()
        return self.__dict__.setdefault(entry, mine) is mine

    def _claim_or_raise(self) -> None:
        if not self._take("_settler"):
            raise RuntimeError("the future has a result already")

    def __del__(self) -> None:
        if getattr(self, "_error", None) is not None and not self._retrieved and not self.eager:
            try:
                _log.error("a call failed and nobody asked for its result: %s", self._error)
            except Exception:
                pass  # at interpreter exit even logging may be gone
