"""What a legacy profile of torch records here, and what is added to it: the events of calls' callees.

`torch.autograd.profiler_legacy.profile` keeps its events in C++, for the thread that entered it. While an agent is
there, a `Recording` stands beside each such profile: it knows with which settings, takes the callees' events, and
puts them among the profile's own when that ends. Three names of torch's module are replaced for it, by `install`.
torch's own RPC does the same in C++; under the Kineto profiler it records no calls, and neither is it done here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch.autograd import profiler_legacy

__all__ = [
    "Events",
    "Recording",
    "Settings",
    "current",
    "install",
    "recorded",
    "recordings",
    "uninstall",
    "unrecorded",
]

REMOTE: Final = "#remote_op: "
"""Between the name of a call and that of an event at its callee."""

_profiler: Any = profiler_legacy
_torch: Any = torch
_start_trace: Any = profiler_legacy.profile._start_trace
_disable: Any = _profiler._disable_profiler_legacy
_parse: Any = _profiler._parse_legacy_records


class Settings(NamedTuple):
    """How much a profile records; the fields are torch's."""

    use_cuda: bool = False
    record_shapes: bool = False
    with_flops: bool = False
    profile_memory: bool = False
    with_stack: bool = False
    with_modules: bool = False


class Events(NamedTuple):
    """What ran on one worker, times in microseconds from `start` on."""

    start: int
    """Nanoseconds since the epoch, by that worker's clock."""
    events: list[Any]
    """`torch.autograd.profiler_util.FunctionEvent`s, not yet arranged in a tree."""


class Recording:
    """Beside one profile. Entered and ended by one thread, added to by any."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node_id = -1
        """This worker's id, once it has called somebody: torch's name for it."""
        self._start = time.time_ns()
        self._lock = threading.Lock()  # guards _remote
        self._remote: list[Any] = []

    def add(self, key: str, node_id: int, remote: Events) -> None:
        """The events of the call `key` at its callee, whose id is `node_id`."""
        shift = (remote.start - self._start) / 1000
        for event in remote.events:
            event.name = f"{key}{REMOTE}{event.name}"
            event.trace_name = f"{key}{REMOTE}{event.trace_name}"
            event.is_remote = True
            if event.node_id == -1:
                event.node_id = node_id
            event.time_range.start += shift
            event.time_range.end += shift
        with self._lock:
            self._remote += remote.events

    def complete(self, local: Iterable[Any]) -> list[Any]:
        """The events of this thread, and the remote ones among them: by their start, the longer ones first."""
        events = list(local)
        for event in events:
            if event.node_id == -1:
                event.node_id = self.node_id
        with self._lock:
            events += self._remote
        return sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))


recordings: list[Recording] = []
"""Of all threads: while it is empty, no call looks any further."""


class _Thread(threading.local):
    recording: Recording | None = None


_thread = _Thread()


def current() -> Recording | None:
    """Beside the profile that this thread has entered."""
    return _thread.recording


@contextmanager
def unrecorded() -> Iterator[None]:
    """What this thread calls in the meantime is not recorded as a call."""
    recording, _thread.recording = _thread.recording, None
    try:
        yield
    finally:
        _thread.recording = recording


def recorded(settings: Settings, run: Callable[[], Any]) -> tuple[Any, Events]:
    """What `run` returns, and what ran for it in this thread: nothing where the thread is profiled already."""
    if _torch.autograd._profiler_enabled():
        return run(), Events(time.time_ns(), [])
    profile = _profiler.profile(**settings._asdict())
    _start_trace(profile)
    recording = _begin(settings)
    try:
        result = run()
    finally:
        _end()
        records = _disable()
    return result, Events(recording._start, recording.complete(_parse(records)))


def _begin(settings: Settings) -> Recording:
    _thread.recording = recording = Recording(settings)
    recordings.append(recording)
    return recording


def _end() -> Recording | None:
    recording, _thread.recording = _thread.recording, None
    if recording is not None:
        recordings.remove(recording)
    return recording


# What stands in torch's place.
class _Records(list[Any]):
    """A profile's records, on their way from its end to their reading."""

    recording: Recording


def _start_trace_here(profile: Any) -> None:
    _start_trace(profile)
    _begin(Settings(*[getattr(profile, name) for name in Settings._fields]))


def _disable_here(*options: Any) -> Any:
    recording = _end()
    records = _disable(*options)
    if recording is None:
        return records
    result = _Records(records)
    result.recording = recording
    return result


def _parse_here(records: Any) -> Any:
    events = _parse(records)
    return records.recording.complete(events) if isinstance(records, _Records) else events


_install_lock = threading.Lock()  # guards _installed and torch's names
_installed = 0


def install() -> None:
    """Stand beside the legacy profiles of this process that begin from now on; `uninstall` ends it as often."""
    global _installed
    with _install_lock:
        _installed += 1
        if _installed == 1:
            profiler_legacy.profile._start_trace = _start_trace_here  # type: ignore[method-assign]
            _profiler._disable_profiler_legacy = _disable_here
            _profiler._parse_legacy_records = _parse_here


def uninstall() -> None:
    global _installed
    with _install_lock:
        _installed -= 1
        if _installed == 0:
            profiler_legacy.profile._start_trace = _start_trace  # type: ignore[method-assign]
            _profiler._disable_profiler_legacy = _disable
            _profiler._parse_legacy_records = _parse
