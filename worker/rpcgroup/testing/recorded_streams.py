"""Streams and events of the recording device, and holds: what makes a stream's work take as long as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle

import torch

from rpcgroup.testing.stream_order import Clock, Lane

__all__ = ["Hold", "RecordedEvent", "RecordedStream", "StreamPool"]


class Hold:
    """What the streams behind it wait for, as for a long kernel."""

    def __init__(self, released: threading.Condition) -> None:
        self._released = released
        self.active = True

    def release(self) -> None:
        with self._released:
            self.active = False
            self._released.notify_all()


@dataclass(eq=False)
class RecordedStream:
    device: torch.device
    lane: Lane
    priority: int = 0
    holds: frozenset[Hold] = frozenset()
    """What its work is behind; some of them may have been released."""
    busy_until: float = 0.0
    """The same for what ends by itself, in seconds of the monotonic clock."""

    def __repr__(self) -> str:
        return self.lane.name


@dataclass(eq=False)
class RecordedEvent:
    clock: Clock
    holds: frozenset[Hold]
    time: float = 0.0
    """When it is done, but for the holds; of the monotonic clock."""
    used: bool = False
    """A stream has waited for it, or the host has asked for it."""

    def is_done(self) -> bool:
        return not self.is_held() and self.seconds_left() <= 0

    def is_held(self) -> bool:
        return any(hold.active for hold in self.holds)

    def seconds_left(self) -> float:
        return self.time - time.monotonic()


class StreamPool:
    """A default stream for each device, and `size` more of each priority, given out in turn as ATen's. Not
    thread-safe."""

    def __init__(self, devices: Iterable[torch.device], size: int) -> None:
        self.defaults = {
            device: RecordedStream(device, Lane(f"{device} default stream")) for device in devices
        }
        self.streams = list(self.defaults.values())
        self._next = {}
        for device in self.defaults:
            for priority, kind in ((0, "stream"), (-1, "high-priority stream")):
                some = [RecordedStream(device, Lane(f"{device} {kind} {i}"), priority) for i in range(size)]
                self.streams += some
                self._next[device, priority] = cycle(some)

    def next(self, device: torch.device, priority: int) -> RecordedStream:
        return next(self._next[device, -1 if priority < 0 else 0])
