"""When a value may be used on its devices: one event for each, and the tensors whose memory is meant.

Source: the RFC of CUDA-aware futures (pytorch#48305): a value is there when its user can enqueue ordered work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from rpcgroup.cuda.runtime import Event, Runtime

__all__ = ["Events"]


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

    @contextmanager
    def after(self, devices: Iterable[torch.device] = (), priority: int = 0) -> Iterator[None]:
        """Fresh streams of the pool are this thread's current ones, behind the events; of these and `devices`."""
        runtime = self._runtime
        on = dict.fromkeys((*self._events, *devices))
        with runtime.use([runtime.new_stream(device, priority) for device in on]):
            self.wait()
            yield
