"""Tensors that arrive for the devices of this process: allocated when they are announced, filled as chunks come.

Nothing here waits for a device: a message is ready when the last copy of its tensors has been enqueued, with an event
for each device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from rpcgroup.cuda.arrival import Arrival, Destination, Inlets, Outcome
from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.ipc import Ipc
from rpcgroup.cuda.runtime import Runtime
from rpcgroup.cuda.staging import SMALL, PinnedPool
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.payloads import IPC, Payload

__all__ = ["Arrivals"]

EARLY_LIMIT: Final = 64
"""Transfers kept that have not been announced: whoever handles the announcement can be overtaken by another thread,
and on a busy machine by all the chunks of the transfer. What stays here is of transfers that nobody expects."""


class Arrivals:
    """The receiving side of one channel. Thread-safe; no method blocks on a device or on staging.

    `ordinary(size)` gives memory for what comes while no pinned block is free. `release(transfer_id)` is called, where
    the completions' actions are done, when what a transfer shares by `ipc` has been read, or is not going to be.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: PinnedPool,
        completions: Completions,
        ordinary: Callable[[int], Any] = bytearray,
        ipc: Ipc | None = None,
        release: Callable[[int], None] = lambda transfer_id: None,
        inlets: Inlets | None = None,
    ) -> None:
        inlets = inlets or Inlets(runtime)
        self._destination = Destination(runtime, inlets, completions, pool.chunk, ipc)
        self._pool = pool
        self._ordinary = ordinary
        self._release = release
        self._lock = threading.Lock()  # guards _transfers, _early, _closed
        self._transfers: dict[int, Arrival] = {}
        self._early: dict[int, list[Callable[[], None]]] = {}
        """What came before its transfer was announced, however much; the oldest transfer first."""
        self._closed = False

    @property
    def pending(self) -> int:
        """Transfers that lack chunks."""
        return len(self._transfers)

    def allocate(self, size: int) -> Any:
        """Memory for a chunk that is about to be received. Raises `RemoteProtocolError` where it is too large."""
        if size > self._pool.chunk:
            raise RemoteProtocolError(f"a chunk has {size} bytes, and the largest {self._pool.chunk}")
        if size > SMALL:
            try:
                staging = self._pool.try_take()
                if staging is None and self._destination.completions.poll():
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
        Raises `RemoteProtocolError` for what cannot come here, and for a transfer that is under way already.
        """
        count = self._destination.runtime.device_count()
        for payload in payloads:
            if payload.device >= count:
                raise RemoteProtocolError(
                    f"a payload is for cuda:{payload.device}, and {count} devices are here"
                )
            if payload.path == IPC and self._destination.ipc is None:
                raise RemoteProtocolError("a payload shares memory, which has not been agreed on")
        released = partial(self._release, transfer_id)
        self._begin(transfer_id, Arrival(self._destination, payloads, ready, failed, released))

    def _begin(self, transfer_id: int, transfer: Arrival) -> None:
        early = self._announce(transfer_id, transfer)
        if early is None:
            return
        self._after(transfer_id, transfer, transfer.begin())
        for action in early:
            action()

    def _announce(self, transfer_id: int, transfer: Arrival) -> list[Callable[[], None]] | None:
        """What has come of it before; None where everything has been dropped."""
        with self._lock:
            if self._closed:
                return None
            if transfer_id in self._transfers:
                raise RemoteProtocolError(f"transfer {transfer_id} is announced twice")
            self._transfers[transfer_id] = transfer
            return self._early.pop(transfer_id, [])

    def on_chunk(self, transfer_id: int, index: int, place: int, data: Any) -> None:
        """Bytes of a payload have come, in memory that is not used again before they are copied.

        Raises `RemoteProtocolError` where the transfer does not lack them.
        """
        transfer = self._find(transfer_id, partial(self.on_chunk, transfer_id, index, place, data))
        if transfer is not None:
            self._after(transfer_id, transfer, transfer.fill(index, place, data))

    def on_failed(self, transfer_id: int, exc: Exception) -> None:
        """The sender has failed: what is missing does not come."""
        transfer = self._find(transfer_id, partial(self.on_failed, transfer_id, exc))
        if transfer is not None:
            self._after(transfer_id, transfer, transfer.fail(exc))

    def close(self) -> None:
        """Drop everything; nobody is told."""
        with self._lock:
            self._closed = True
            self._transfers.clear()
            self._early.clear()

    def _find(self, transfer_id: int, again: Callable[[], None]) -> Arrival | None:
        with self._lock:
            transfer = self._transfers.get(transfer_id)
            if transfer is None and not self._closed:
                self._early.setdefault(transfer_id, []).append(again)
                if len(self._early) > EARLY_LIMIT:
                    del self._early[next(iter(self._early))]
            return transfer

    def _after(self, transfer_id: int, transfer: Arrival, outcome: Outcome | None) -> None:
        if not transfer.missing:
            with self._lock:
                self._transfers.pop(transfer_id, None)
        if outcome is not None:
            outcome()
