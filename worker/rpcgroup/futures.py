"""A future that is torch's, and awaitable. The future of a call is `rpcgroup.agent.call_future.CallFuture`.

A `Future` is a `torch.futures.Future`, so `collect_all` and `wait_all` take it; settling it fills in
torch's part.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import torch

from rpcgroup.errors import and_runtime_error

__all__ = ["Future", "collect_all"]

T = TypeVar("T")
S = TypeVar("S")
_log = logging.getLogger(__name__)
_callbacks_lock = _thread.allocate_lock()  # guards every future's list of callbacks while one is added

before_blocking: list[Callable[[], None]] = []
"""Called before a thread blocks in a future: an agent whose reactor it is hands the leadership over."""


class Future(torch.futures.Future[T]):
    """A value to come: the result of a `then`, or one to be set by hand. Thread-safe.

    It is settled once, by whoever gets `_claim_settling`. Every callback is run by whoever pops it.
    """

    # Defaults of the instance's attributes: a future is made for every call, and most are never set.
    _settled = False
    _retrieved = False
    _value: Any = None
    _error: BaseException | None = None
    _mirroring_error = False
    _callbacks: list[Callable[[Any], Any]] | None = None
    eager = False
    """Somebody wants to be told as soon as it is settled."""

    def __init__(self) -> None:
        # Past torch's Python __init__, which only converts a list of devices.
        super(torch.futures.Future, self).__init__([])
        self._unclaimed = _thread.allocate_lock()

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, non_blocking: bool = False) -> T:
        """The value, or raises what went wrong; blocks. On CPU `non_blocking` has no effect."""
        if not self._settled:
            self._block()
        return self._get()

    def value(self) -> T:
        """The value of a done future; raises what went wrong, `RuntimeError` where it is not done."""
        if not self.done():
            raise RuntimeError("the future is not done")
        return self.wait()

    def done(self) -> bool:
        return self._settled

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

    def then(self, callback: Callable[[Future[T]], S]) -> Future[S]:
        """A future of what `callback(self)` returns or raises, run once this one is done.

        What it raises is a `RuntimeError` too, as in torch, where it is nothing else.
        """
        if not callable(callback):
            raise TypeError(f"then(): incompatible function arguments. It takes a callable, got {callback!r}")
        result: Future[S] = Future()

        def run(done: Future[T]) -> None:
            try:
                result.set_result(callback(done))
            except BaseException as exc:
                result.set_exception(_and_runtime_error(exc))

        self._when_settled(run)
        return result

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """As `then`, without a result; what it raises is logged."""
        self._when_settled(callback)

    def _when_settled(self, callback: Callable[[Any], Any]) -> None:
        self.eager = True
        if self._settled:
            self._run_callback(callback)
            return
        with _callbacks_lock:
            if self._callbacks is None:
                self._callbacks = []
            self._callbacks.append(callback)
        # Appended first, then looked again: whoever settles it after this sees the callback.
        if self._settled:
            self._run_callbacks()

    def _run_callback(self, callback: Callable[[Any], Any]) -> None:
        try:
            callback(self)
        except BaseException:  # this thread is not the callback's to end
            _log.exception("a callback of a future failed")

    def _run_callbacks(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                return
            self._run_callback(callback)

    # -- settling -----------------------------------------------------------------------------------------

    def set_result(self, result: T) -> None:
        """Settle by hand; raises `RuntimeError` where that has happened already."""
        if self._mirroring_error:
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
        """Give the call up, where this is the future of one. False where it cannot be, or is done already."""
        return False

    def _claim_settling(self) -> bool:
        """Whether this thread is the one to settle it."""
        return self._unclaimed.acquire(False)

    def _claim_or_raise(self) -> None:
        if not self._claim_settling():
            raise RuntimeError("Future can only be marked completed once, and that of a call by its answer")

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if error is None:
            self._value = value
            super(torch.futures.Future, self).set_result(value)
        else:
            self._error = error
            self._mirror_error(error)
        self._settled = True

    def _mirror_error(self, error: BaseException) -> None:
        torch_error = error if isinstance(error, Exception) else RuntimeError(repr(error))
        self._mirroring_error = True
        super().set_exception(torch_error)  # type: ignore[arg-type]
        self._mirroring_error = False

    def __del__(self) -> None:
        if self._error is not None and not self._retrieved and not self.eager:
            try:
                _log.error("a call failed and nobody asked for its result: %s", self._error)
            except Exception:
                pass  # at interpreter exit even logging may be gone


def collect_all(futures: list[torch.futures.Future[Any]]) -> Future[list[torch.futures.Future[Any]]]:
    """A future of these futures: done when all are, or with the error of the first that fails."""
    collected: Future[list[torch.futures.Future[Any]]] = Future()
    remaining = [None] * len(futures)

    def done(future: torch.futures.Future[Any]) -> None:
        try:
            future.value()
        except BaseException as exc:
            if collected._claim_settling():
                collected._settle(None, exc)
                collected._run_callbacks()
            return
        remaining.pop()  # atomic, and exactly one finds it empty afterwards
        if not remaining and collected._claim_settling():
            collected._settle(futures, None)
            collected._run_callbacks()

    if not futures:
        collected.set_result([])
    for future in futures:
        future.add_done_callback(done)
    return collected


def _and_runtime_error(exc: BaseException) -> BaseException:
    if isinstance(exc, RuntimeError) or not isinstance(exc, Exception):
        return exc
    kind: Any = and_runtime_error(type(exc))
    try:
        both: BaseException = kind.__new__(kind, *exc.args)
        both.args = exc.args
    except TypeError:
        return exc  # its memory is laid out in a way of its own
    vars(both).update(vars(exc))
    both.__cause__, both.__context__ = exc.__cause__, exc.__context__
    both.__suppress_context__ = exc.__suppress_context__
    return both.with_traceback(exc.__traceback__)
