"""On which streams a worker does its part of a context's backward passes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rpcgroup.cuda.events import Events
from rpcgroup.cuda.extraction import device_tensors
from rpcgroup.cuda.runtime import Event, Runtime, Stream

__all__ = ["ContextStreams"]


class ContextStreams:
    """Of one context at one worker: one stream for each device, the same for all stages of all its passes.

    So stages follow each other in order, whatever threads run them, and what they add up needs no events of its own.
    torch's engine runs each node on the stream of its forward, behind the current one, which waits for it in the end.
    """

    def __init__(self, runtime: Runtime, devices: Iterable[torch.device], priority: int) -> None:
        self._runtime = runtime
        self._priority = priority
        self._lock = threading.Lock()  # guards _streams
        self._streams: dict[torch.device, Stream] = {}
        self._done: dict[torch.device, Event] = {}
        """Behind what has been done for the gradients; replaced, never changed."""
        self._add(devices)

    def _add(self, devices: Iterable[torch.device]) -> list[Stream]:
        with self._lock:
            for device in devices:
                if device not in self._streams:
                    self._streams[device] = self._runtime.new_stream(device, self._priority)
            return list(self._streams.values())

    @contextmanager
    def use(self, arrived: Sequence[Events | None]) -> Iterator[None]:
        """They are this thread's current ones, behind the events of the gradients that have arrived."""
        known = [events for events in arrived if events is not None]
        with self._runtime.use(self._add([device for events in known for device in events.devices])):
            for events in known:
                events.wait()
            yield

    def retain(self, used: Sequence[Any]) -> None:
        """Within `use`: these come from another stream of torch's engine, and are used on the current ones."""
        for tensor in device_tensors(used, self._runtime):
            self._runtime.retain(tensor, self._runtime.current_stream(tensor.device))

    def finish_stage(self, gradients: Sequence[torch.Tensor]) -> None:
        """Within `use`: these have been added to the context's."""
        runtime = self._runtime
        devices = {tensor.device for tensor in device_tensors(gradients, runtime)}
        done = {device: runtime.record(runtime.current_stream(device)) for device in devices}
        self._done = self._done | done

    def hand_over(self, gradients: Sequence[torch.Tensor]) -> None:
        """Order this thread's current streams behind what has been done for the gradients."""
        Events(self._runtime, self._done, device_tensors(gradients, self._runtime)).wait()
