"""Tensors that arrive for the devices of this process: allocated when they are announced, filled as chunks come.

Nothing here waits for a device: a message is ready when the last copy of its tensors has been enqueued, with an event
for each device.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch

from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.outbound import SMALL
from rpcgroup.cuda.runtime import Runtime, Stream
from rpcgroup.cuda.staging import PinnedPool, staging_of
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.payloads import HOST, Payload, chunk_size, count_chunks

__all__ = ["Arrivals"]

EARLY_LIMIT: Final = 16
"""Messages kept whose transfer has not been announced: whoever handles the announcement can be overtaken by another
thread for a moment. What stays here is of a transfer that nobody expects."""


_Outcome = Callable[[], None]


class _Transfer:
    """Waits for its chunks, then either ready or failed; of one that has failed, what still comes is swallowed."""

    def __init__(
        self,
        runtime: Runtime,
        payloads: Sequence[Payload],
        chunk: int,
        ready: Callable[[Events], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.lock = threading.Lock()
        """Guards everything here, so that chunks find the tensors allocated."""
        self._runtime = runtime
        self._payloads = payloads
        self._chunk = chunk
        self._ready = ready
        self._failed = failed
        self._settled = False
        self._targets: list[torch.Tensor] = []
        self._streams: dict[torch.device, Stream] = {}
        self._lacking = [
            bytearray(b"\1" * (count_chunks(p.size, chunk) if p.path == HOST else 0)) for p in payloads
        ]
        """Of each payload, 1 for each chunk that has not come."""
        self.missing = sum(map(len, self._lacking))

    def begin(self) -> _Outcome | None:
        return self._advance(self._allocate)

    def fill(self, index: int, place: int, data: Any, completions: Completions) -> _Outcome | None:
        """Enqueue the copy of a chunk. Raises `RemoteProtocolError` where it is none of those that are missing."""
        self._claim(index, place, len(data))
        return self._advance(partial(self._copy, index, place, data, completions))

    def fail(self, exc: Exception) -> _Outcome | None:
        if self._settled:
            return None
        self._settled = True
        self._targets = []
        return partial(self._failed, exc)

    def _advance(self, step: Callable[[], None]) -> _Outcome | None:
        """Whom to tell of what has become of it, once the lock is free."""
        if self._settled:
            return None
        try:
            step()
            if self.missing:
                return None
            events = self._record()
        except Exception as exc:
            # Its frames, and those that called them, refer to tensors and to what was received.
            return self.fail(exc.with_traceback(None))
        self._settled = True
        return partial(self._ready, events)

    def _stream(self, device: torch.device) -> Stream:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = self._runtime.new_stream(device)
        return stream

    def _allocate(self) -> None:
        runtime = self._runtime
        for payload in self._payloads:
            device = torch.device("cuda", payload.device)
            with runtime.use([self._stream(device)]):
                self._targets.append(runtime.empty(payload.size, device))

    def _claim(self, index: int, place: int, size: int) -> None:
        lacking = self._lacking
        if index >= len(lacking) or place >= len(lacking[index]) or not lacking[index][place]:
            raise RemoteProtocolError(f"chunk {place} of payload {index} is none that its transfer lacks")
        expected = chunk_size(self._payloads[index].size, place, self._chunk)
        if size != expected:
            raise RemoteProtocolError(f"chunk {place} of payload {index} has {size} bytes, not {expected}")
        lacking[index][place] = 0
        self.missing -= 1

    def _copy(self, index: int, place: int, data: Any, completions: Completions) -> None:
        runtime = self._runtime
        target = self._targets[index]
        stream = self._streams[target.device]
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
        completions.keep(data, stream)

    def _record(self) -> Events:
        record = self._runtime.record
        devices = dict.fromkeys(target.device for target in self._targets)
        return Events(self._runtime, {d: record(self._streams[d]) for d in devices}, self._targets)


class Arrivals:
    """The receiving side of one channel. Thread-safe; no method blocks on a device or on staging.

    `ordinary(size)` gives memory for what comes while no pinned block is free.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: PinnedPool,
        completions: Completions,
        ordinary: Callable[[int], Any] = bytearray,
    ) -> None:
        self._runtime = runtime
        self._pool = pool
        self._completions = completions
        self._ordinary = ordinary
        self._lock = threading.Lock()  # guards _transfers, _early, _closed; taken before no transfer's
        self._transfers: dict[int, _Transfer] = {}
        self._early: deque[tuple[int, Callable[[], None]]] = deque(maxlen=EARLY_LIMIT)
        """What came before its transfer was announced, the oldest first."""
        self._closed = False

    @property
    def pending(self) -> int:
        """Transfers that lack chunks."""
        return len(self._transfers)

    def allocate(self, size: int) -> Any:
        """Memory for a chunk that is about to be received. Raises `RemoteProtocolError` where it is too large."""
        chunk = self._pool.chunk
        if size > chunk:
            raise RemoteProtocolError(f"a chunk has {size} bytes, and the largest {chunk}")
        if size > SMALL:
            try:
                staging = self._pool.try_take()
                if staging is None and self._completions.poll():
                    staging = self._pool.try_take()
            except Exception:
                staging = None  # the system pins no more
            if staging is not None:
                return staging.memory(size)
        return self._ordinary(size)

    def expect(
        self,
        transfer_id: int,
        payloads: Sequence[Payload],
        ready: Callable[[Events], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """A message with these payloads has come. One of the two is called, once, here or by a later chunk.

        `ready` gets the flat tensors in the order of the payloads, when their last copies have been enqueued.
        Raises `RemoteProtocolError` for a device that is not here, and for a transfer that is under way already.
        """
        count = self._runtime.device_count()
        for payload in payloads:
            if payload.device >= count:
                raise RemoteProtocolError(
                    f"a payload is for cuda:{payload.device}, and {count} devices are here"
                )
        self._begin(transfer_id, _Transfer(self._runtime, payloads, self._pool.chunk, ready, failed))

    def _begin(self, transfer_id: int, transfer: _Transfer) -> None:
        with transfer.lock:
            early = self._announce(transfer_id, transfer)
            outcome = transfer.begin() if early is not None else None
        self._after(transfer_id, transfer, outcome)
        for action in early or ():
            action()

    def _announce(self, transfer_id: int, transfer: _Transfer) -> list[Callable[[], None]] | None:
        """What has come of it before; None where everything has been dropped."""
        with self._lock:
            if self._closed:
                return None
            if transfer_id in self._transfers:
                raise RemoteProtocolError(f"transfer {transfer_id} is announced twice")
            self._transfers[transfer_id] = transfer
            early = [action for id, action in self._early if id == transfer_id]
            if early:
                others = [entry for entry in self._early if entry[0] != transfer_id]
                self._early.clear()
                self._early.extend(others)
        return early

    def on_chunk(self, transfer_id: int, index: int, place: int, data: Any) -> None:
        """Bytes of a payload have come, in memory that is not used again before they are copied.

        Raises `RemoteProtocolError` where the transfer does not lack them.
        """
        transfer = self._find(transfer_id, partial(self.on_chunk, transfer_id, index, place, data))
        if transfer is not None:
            with transfer.lock:
                outcome = transfer.fill(index, place, data, self._completions)
            self._after(transfer_id, transfer, outcome)

    def on_failed(self, transfer_id: int, exc: Exception) -> None:
        """The sender has failed: what is missing does not come."""
        transfer = self._find(transfer_id, partial(self.on_failed, transfer_id, exc))
        if transfer is not None:
            with transfer.lock:
                transfer.missing = 0
                outcome = transfer.fail(exc)
            self._after(transfer_id, transfer, outcome)

    def close(self) -> None:
        """Drop everything; nobody is told."""
        with self._lock:
            self._closed = True
            self._transfers.clear()
            self._early.clear()

    def _find(self, transfer_id: int, again: Callable[[], None]) -> _Transfer | None:
        with self._lock:
            transfer = self._transfers.get(transfer_id)
            if transfer is None and not self._closed:
                self._early.append((transfer_id, again))
            return transfer

    def _after(self, transfer_id: int, transfer: _Transfer, outcome: _Outcome | None) -> None:
        if not transfer.missing:
            with self._lock:
                self._transfers.pop(transfer_id, None)
        if outcome is not None:
            outcome()
