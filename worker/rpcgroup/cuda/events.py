"""When a value may be used on its devices: one event for each, and the tensors whose memory is meant.

Source: the RFC of CUDA-aware futures (pytorch#48305): a value is there when its user can enqueue ordered work.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from rpcgroup.cuda.failed import keep_where_failed
from rpcgroup.cuda.runtime import Event, Runtime

__all__ = ["Events"]


class _Thread(threading.local):
    in_callback = False
    """What it waits for does not block it on a device: others wait for what it has to do."""


_thread = _Thread()


class Events:
    """Immutable. `tensors` are those on devices, `devices` where they are, each with one event behind their work."""

    __slots__ = ("_events", "_runtime", "tensors")

    def __init__(
        self, runtime: Runtime, events: dict[torch.device, Event], tensors: Sequence[torch.Tensor]
    ) -> None:
        self._runtime = runtime
        self._events = events
        self.tensors = tensors

    @classmethod
    def record(
        cls, runtime: Runtime, tensors: Sequence[torch.Tensor], devices: Iterable[torch.device] = ()
    ) -> Events:
        """Behind what this thread's current streams have to do, on the devices of the tensors and on `devices`."""
        on = dict.fromkeys((*(tensor.device for tensor in tensors), *devices))
        return cls(runtime, {d: runtime.record(runtime.current_stream(d)) for d in on}, tensors)

    def renewed(self) -> Events:
        """For the same tensors, behind what this thread's current streams have to do by now."""
        return Events.record(self._runtime, self.tensors, self._events)

    def alone(self) -> Events:
        """Without the tensors, which are not kept by it."""
        return Events(self._runtime, self._events, ())

    @property
    def devices(self) -> list[torch.device]:
        return list(self._events)

    def wait(self) -> None:
        """Order this thread's current streams behind the events. Does not block."""
        runtime = self._runtime
        streams = {device: runtime.current_stream(device) for device in self._events}
        for device, event in self._events.items():
            runtime.wait(streams[device], event)
        for tensor in self.tensors:
            runtime.retain(tensor, streams[tensor.device])

    def synchronize(self) -> None:
        """Block until the devices have done the work; raises what one has failed with."""
        for event in self._events.values():
            self._runtime.synchronize(event)

    def are_over(self) -> bool:
        """Whether the devices have done the work, or have failed and do no more."""
        try:
            return all(map(self._runtime.is_done, self._events.values()))
        except Exception:
            return True

    def precede(self, devices: Iterable[torch.device]) -> None:
        """Order this thread's current streams of these devices behind the events, whichever devices those are of."""
        runtime = self._runtime
        for stream in map(runtime.current_stream, dict.fromkeys(devices)):
            for event in self._events.values():
                runtime.wait(stream, event)

    def take_over(self, non_blocking: bool) -> None:
        """This thread waits for the value: its current streams do, and the host too unless `non_blocking`."""
        self.wait()
        if not non_blocking:
            self.hold_host()

    def hold_host(self) -> None:
        """`synchronize`, save within a `callback`: others wait for what that has to do."""
        if not _thread.in_callback:
            self.synchronize()

    def keep_where_failed(self) -> None:
        """The tensors, where one of their devices has; see `rpcgroup.cuda.failed`."""
        runtime = self._runtime
        keep_where_failed(runtime, map(runtime.current_stream, self._events), self.tensors)

    @contextmanager
    def callback(self, devices: Iterable[torch.device], priority: int) -> Iterator[None]:
        """`after`, for a callback: nothing that it takes over blocks it on a device."""
        nested, _thread.in_callback = _thread.in_callback, True
        try:
            with self.after(devices, priority):
                yield
        finally:
            _thread.in_callback = nested

    @contextmanager
    def after(self, devices: Iterable[torch.device] = (), priority: int = 0) -> Iterator[None]:
        """Fresh streams of the pool are this thread's current ones, behind the events; of these and `devices`."""
        runtime = self._runtime
        on = dict.fromkeys((*self._events, *devices))
        with runtime.use([runtime.new_stream(device, priority) for device in on]):
            self.wait()
            yield
