"""A future that is torch's, and awaitable. The future of a call is `rpcgroup.agent.call_future.CallFuture`.

A `Future` is a `torch.futures.Future`, so `collect_all` and `wait_all` take it; settling it fills in
torch's part. One with devices is done when its value can be used in order, and not when the devices have finished
(the RFC of CUDA-aware futures, pytorch#48305): it keeps an event for each device, behind which its users are put.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from rpcgroup.cuda.events import Events
from rpcgroup.cuda.expected import expected_devices, require_expected
from rpcgroup.cuda.extraction import device_tensors
from rpcgroup.cuda.runtime import Runtime, current_runtime
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
    _devices: tuple[torch.device, ...] = ()
    _priority = 0
    _events: Events | None = None
    """Behind which its value may be used; there before it is settled."""

    def __init__(self, devices: Iterable[int | str | torch.device] | None = None, priority: int = 0) -> None:
        """`devices`: where the tensors of its value may be, and what its callbacks may use; those of a `then` inherit
        them. The value of one without devices is not ordered.

        `priority` is that of the streams its callbacks run on: negative is high. Raises `ValueError` where `devices`
        are no devices of one kind, with indices.
        """
        # Past torch's Python __init__, which only converts a list of devices.
        if not devices:
            super(torch.futures.Future, self).__init__([])
        else:
            self._devices, self._priority = expected_devices(devices), priority
            self._make_torch_part()
        self._unclaimed = _thread.allocate_lock()

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, non_blocking: bool = False) -> T:
        """The value, or raises what went wrong, a device included; blocks until there is one.

        Where its tensors are on devices this thread's current streams wait for what fills them, and the host does
        too unless `non_blocking` (a callback's never does). Without devices `non_blocking` has no effect.
        """
        if not self._settled:
            self._block()
        if self._events is not None:
            self._events.take_over(non_blocking)
        return self._get()

    def value(self) -> T:
        """The value of a done future; raises what went wrong, `RuntimeError` where it is not done.

        As torch's it orders nothing: that is for a `wait` before, or done already where a callback runs.
        """
        if not self._settled:
            raise RuntimeError("the future is not done")
        return self._get()

    def done(self) -> bool:
        return self._settled

    def __await__(self) -> Generator[Any, None, T]:
        """As `wait(non_blocking=True)`: the loop is never held up by a device."""
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

        self._when_settled(wake_threadsafe)
        try:
            yield from woken
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self.wait(non_blocking=True)

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

        What it raises is a `RuntimeError` too, as in torch, where it is nothing else. With devices it runs with fresh
        streams of theirs as the current ones, which wait for this future's value; what it enqueues there is what the
        new future is ordered behind.
        """
        if not callable(callback):
            raise TypeError(f"then(): incompatible function arguments. It takes a callable, got {callback!r}")
        devices, priority = self._placement()
        result: Future[S] = Future(devices=devices, priority=priority) if devices else Future()

        def run(done: Future[T]) -> None:
            try:
                result.set_result(callback(done))
            except BaseException as exc:
                result.set_exception(_and_runtime_error(exc))

        self._when_settled(_on_streams(run) if devices else run)
        return result

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """As `then`, without a result; what it raises is logged."""
        devices, _ = self._placement()
        self._when_settled(_on_streams(callback) if devices else callback)

    @contextmanager
    def _streams(self) -> Iterator[None]:
        """Of a callback of this future, which is done."""
        runtime = current_runtime()
        if runtime is None:
            yield
            return
        events = self._events if self._events is not None else Events.record(runtime, ())
        with events.callback(*self._placement()):
            yield

    def _placement(self) -> tuple[tuple[torch.device, ...], int]:
        """The devices of its callbacks, and the priority of their streams."""
        return self._devices, self._priority

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
        """Settle by hand; raises `RuntimeError` where that has happened already.

        This thread's current streams must be those that fill the tensors of the result. Where one is on a device that
        is not among the future's, the future fails with a `ValueError`, as torch's does.
        """
        if self._mirroring_error:
            super().set_result(result)  # torch's own set_exception comes back here
            return
        self._claim_or_raise()
        if self._devices:
            self._settle_in_order(result, partial(self._record, result))
        else:
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

    def _settle_in_order(self, value: Any, record: Callable[[], Events | None]) -> None:
        """Record the events first; where that fails the future does, which its users learn."""
        try:
            self._events = record()
        except BaseException as exc:
            self._settle(None, exc)
        else:
            self._settle(value, None)

    def _record(self, value: Any) -> Events | None:
        runtime = current_runtime()
        if runtime is None:
            return None
        tensors = device_tensors(value, runtime)
        require_expected(tensors, self._devices)
        return Events.record(runtime, tensors)

    def _make_torch_part(self) -> None:
        devices, _ = self._placement()
        runtime = current_runtime() if devices else None
        if runtime is None or runtime.tensor_type is not torch.Tensor:
            devices = ()  # a recording runtime's are not known to torch's C++
        super(torch.futures.Future, self).__init__(list(devices))

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


def _on_streams(callback: Callable[[Future[T]], None]) -> Callable[[Future[T]], None]:
    """Where the device gives none it is called all the same, with a future that failed so: others wait for it."""

    def run(done: Future[T]) -> None:
        with ExitStack() as entered:
            try:
                entered.enter_context(done._streams())
            except BaseException as exc:
                done = Future()
                done.set_exception(exc)
            callback(done)

    return run


def collect_all(futures: list[torch.futures.Future[Any]]) -> Future[list[torch.futures.Future[Any]]]:
    """A future of these futures: done when all are, or with the error of the first that fails.

    To wait for it is to wait for them, also on their devices, which are its own.
    """
    runtime = current_runtime()
    devices, priority = _shared_placement(futures) if runtime is not None else ((), 0)
    collected: Future[list[torch.futures.Future[Any]]] = Future(devices=devices, priority=priority)
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
            if runtime is None:
                collected._settle(futures, None)
            else:
                collected._settle_in_order(futures, partial(_events_of, futures, runtime))
            collected._run_callbacks()

    if not futures:
        collected.set_result([])
    for future in futures:
        if isinstance(future, Future):
            future._when_settled(done)
        else:
            future.add_done_callback(done)
    return collected


def _shared_placement(futures: list[torch.futures.Future[Any]]) -> tuple[tuple[torch.device, ...], int]:
    placements = [future._placement() for future in futures if isinstance(future, Future)]
    devices = {device for on, _ in placements for device in on}
    return tuple(devices), min((priority for _, priority in placements), default=0)


def _events_of(futures: list[torch.futures.Future[Any]], runtime: Runtime) -> Events | None:
    """Behind the values of all, which are there; on streams that nothing else waits for."""
    ours = [future._events for future in futures if isinstance(future, Future) and future._events is not None]
    torchs = [future for future in futures if not isinstance(future, Future)]
    tensors = [tensor for events in ours for tensor in events.tensors]
    tensors += device_tensors([future.value() for future in torchs], runtime)
    if not tensors:
        return None
    with Events.record(runtime, ()).after(tensor.device for tensor in tensors):
        for events in ours:
            events.wait()
        for future in torchs:
            future.wait()  # torch's, of one that is done: it orders the current streams
        return Events.record(runtime, tensors)


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
