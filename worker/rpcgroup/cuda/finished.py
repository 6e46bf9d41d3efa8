"""What functions have enqueued whose results bring no tensors, so that nobody can wait for it on the devices.

An optimizer's step returns nothing. Whoever has waited for it calls the next forward pass, on other streams, and that
must find what the step has written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch

from rpcgroup.cuda.runtime import Event, Runtime

__all__ = ["Finished"]


class Finished:
    """Of one agent. Thread-safe. Raises what the devices raise."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()  # guards _events
        self._events: dict[torch.device, Event] = {}
        """The latest of each device, behind all earlier ones."""

    def add(self, devices: Iterable[torch.device]) -> None:
        """What this thread's current streams have to do there, before the caller learns that it has been enqueued."""
        runtime = self._runtime
        with self._lock:
            for device in devices:
                stream = runtime.current_stream(device)
                earlier = self._events.get(device)
                if earlier is not None:
                    runtime.wait(stream, earlier)
                self._events[device] = runtime.record(stream)

    def wait(self, devices: Iterable[torch.device]) -> None:
        """Order this thread's current streams behind it."""
        runtime, events = self._runtime, self._events
        for device in devices:
            event = events.get(device)
            if event is not None:
                runtime.wait(runtime.current_stream(device), event)
