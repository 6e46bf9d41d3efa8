"""One transfer at its receiver: tensors are allocated when it is announced, and filled as their bytes come."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.failed import keep_where_failed
from rpcgroup.cuda.ipc import Ipc
from rpcgroup.cuda.runtime import Runtime, Stream
from rpcgroup.cuda.staging import TRANSFER_PRIORITY, staging_of
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.payloads import HOST, IPC, Payload, chunk_size, count_chunks

__all__ = ["INLET_PRIORITY", "Arrival", "Destination", "Inlets", "Outcome"]

INLET_PRIORITY: Final = -2
"""As high as that of other transfers, where a device has no more than two; of its own, so that none of those is put
onto the stream of an inlet."""

ALL: Final = sys.maxsize
"""Of the chunks that are missing."""

Outcome = Callable[[], None]
"""Tells who waits what has become of a transfer."""


class Inlets:
    """Of each device one stream of the process, on which memory for what arrives is allocated. Thread-safe.

    torch's allocator gives memory that was allocated on a stream to that stream only, and those of the pool are others
    for each message: 32 of them would each come to own as much as the largest message needs.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()  # guards that each device has one
        self._streams: dict[torch.device, Stream] = {}

    def stream(self, device: torch.device) -> Stream:
        """What is copied from the host is enqueued here, and nothing that waits for a kernel."""
        stream = self._streams.get(device)
        if stream is None:
            with self._lock:
                stream = self._streams.get(device)
                if stream is None:
                    stream = self._streams[device] = self._runtime.new_stream(device, INLET_PRIORITY)
        return stream


class Destination(NamedTuple):
    """What the transfers to a process have in common."""

    runtime: Runtime
    inlets: Inlets
    completions: Completions
    chunk: int
    """Bytes."""
    ipc: Ipc | None
    """Opens what senders share; None: they may not."""


class _Step(NamedTuple):
    action: Callable[[], None]
    chunks: int = 0
    """That are not missing any more, whatever becomes of it."""


class Arrival:
    """Waits for its chunks, then either ready or failed; of one that has failed, what still comes is swallowed.

    Thread-safe. What is to be done for it is done in order, by one thread at a time: who finds another at it leaves it
    to that one. Were each chunk to wait for the copy of the one before, each would cost a thread: the reactor goes on
    with the next as soon as one waits.
    """

    def __init__(
        self,
        place: Destination,
        payloads: Sequence[Payload],
        ready: Callable[[Events], None],
        failed: Callable[[Exception], None],
        released: Outcome,
    ) -> None:
        self._lock = threading.Lock()  # guards _lacking, _steps, _stepping; the rest is whose step it is
        self._steps: deque[_Step] = deque([_Step(self._begin)])
        """What is still to be done."""
        self._stepping = False
        self._runtime = place.runtime
        self._inlets = place.inlets
        self._completions = place.completions
        self._ipc = place.ipc
        self._chunk = chunk = place.chunk
        self._payloads = payloads
        self._ready = ready
        self._failed = failed
        self._released = released
        self._settled = False
        self._targets: list[torch.Tensor] = []
        self._streams: dict[torch.device, Stream] = {}
        """For what is read from the sender's memory: each waits for what the sender has enqueued there."""
        self._sources: list[torch.Tensor] = []
        """Memory of the sender that is being read."""
        self._lacking = [
            bytearray(b"\1" * (count_chunks(p.size, chunk) if p.path == HOST else 0)) for p in payloads
        ]
        """Of each payload, 1 for each chunk that has not come."""
        self.missing = sum(map(len, self._lacking))
        """Chunks that have not come, or whose turn has not."""

    def begin(self) -> Outcome | None:
        """Allocate; before anything else, if something else has come already."""
        return self._go_on()

    def fill(self, index: int, place: int, data: Any) -> Outcome | None:
        """Enqueue the copy of a chunk. Raises `RemoteProtocolError` where it is none of those that are missing."""
        with self._lock:
            self._claim(index, place, len(data))
            self._steps.append(_Step(partial(self._copy, index, place, data), 1))
        return self._go_on()

    def fail(self, exc: Exception) -> Outcome | None:
        """What is missing does not come."""
        with self._lock:
            self._steps.append(_Step(partial(_raise, exc), ALL))
        return self._go_on()

    def _go_on(self) -> Outcome | None:
        """Take all steps there are, unless somebody is at it."""
        outcome = None
        with self._lock:
            if self._stepping:
                return None
            self._stepping = True
        while True:
            with self._lock:
                if not self._steps:
                    self._stepping = False
                    return outcome
                step = self._steps.popleft()
            outcome = self._take(step) or outcome
            del step  # it has what was received

    def _take(self, step: _Step) -> Outcome | None:
        self.missing = max(0, self.missing - step.chunks)
        if self._settled:
            return None
        try:
            step.action()
            if self.missing:
                return None
            events = self._record()
        except Exception as exc:
            # Its frames, and those that called them, refer to tensors and to what was received.
            return self._settle_failed(exc.with_traceback(None))
        self._settled = True
        return partial(self._ready, events)

    def _settle_failed(self, exc: Exception) -> Outcome:
        self._settled = True
        keep_where_failed(self._runtime, self._streams.values(), self._targets)
        self._targets = []
        return partial(self._failed, exc)

    def _begin(self) -> None:
        try:
            self._allocate()
        finally:
            if any(payload.path == IPC for payload in self._payloads):
                self._let_go()

    def _stream(self, device: torch.device) -> Stream:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = self._runtime.new_stream(device, TRANSFER_PRIORITY)
        return stream

    def _allocate(self) -> None:
        runtime = self._runtime
        for payload in self._payloads:
            device = torch.device("cuda", payload.device)
            with runtime.use([self._inlets.stream(device)]):
                target = runtime.empty(payload.size, device)
            self._targets.append(target)
            if payload.path == IPC:
                self._read(payload, target)

    def _read(self, payload: Payload, target: torch.Tensor) -> None:
        """Enqueue the copy from the sender's memory, which is on its device."""
        runtime, ipc = self._runtime, self._ipc
        assert ipc is not None
        into, out_of = self._stream(target.device), self._stream(ipc.device_of(payload.blob))
        runtime.wait(into, runtime.record(self._inlets.stream(target.device)))  # who had the memory before
        runtime.retain(target, into)
        with runtime.use([into, out_of]):
            source, written = ipc.open(payload.blob)
            self._sources.append(source)
            if source.nbytes != payload.size:
                raise RemoteProtocolError(f"a payload of {payload.size} bytes shares {source.nbytes}")
            runtime.wait(out_of, written)
            runtime.copy(target, source)

    def _let_go(self) -> None:
        """Release the sender's memory when it has been read, as far as it is being read."""
        sources, self._sources = self._sources, []
        streams = [self._streams[device] for device in dict.fromkeys(source.device for source in sources)]

        def action() -> None:
            with self._runtime.use(streams):  # whoever drops them waits for the current streams
                sources.clear()
            self._released()

        try:
            self._completions.behind(streams, action)
        except Exception:
            pass  # it is tried again, and the transfer fails by itself

    def _claim(self, index: int, place: int, size: int) -> None:
        lacking = self._lacking
        if index >= len(lacking) or place >= len(lacking[index]) or not lacking[index][place]:
            raise RemoteProtocolError(f"chunk {place} of payload {index} is none that its transfer lacks")
        expected = chunk_size(self._payloads[index].size, place, self._chunk)
        if size != expected:
            raise RemoteProtocolError(f"chunk {place} of payload {index} has {size} bytes, not {expected}")
        lacking[index][place] = 0

    def _copy(self, index: int, place: int, data: Any) -> None:
        runtime = self._runtime
        target = self._targets[index]
        stream = self._inlets.stream(target.device)
        staging = staging_of(data)
        size = len(data)
        start = place * self._chunk
        with runtime.use([stream]):
            part = target[start : start + size]
            if staging is not None:
                runtime.copy(part, staging.pinned[:size])
            else:
                # Of the host's ordinary memory the driver makes a copy first, and may wait for the stream to do so.
                part.copy_(torch.frombuffer(data, dtype=torch.uint8), non_blocking=True)
        self._completions.keep(data, stream)

    def _record(self) -> Events:
        runtime, inlet = self._runtime, self._inlets.stream
        by_host = {torch.device("cuda", p.device) for p in self._payloads if p.path == HOST}
        events = {}
        for device in dict.fromkeys(target.device for target in self._targets):
            stream = self._streams.get(device)
            if stream is not None and device in by_host:
                runtime.wait(stream, runtime.record(inlet(device)))
            events[device] = runtime.record(stream or inlet(device))
        return Events(runtime, events, self._targets)


def _raise(exc: Exception) -> None:
    raise exc
