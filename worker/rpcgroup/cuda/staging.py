"""Pinned memory of the host, through which tensors go between a device and a connection.

What is written to a channel is kept until its receiver acknowledges it, so a block comes back only then. Three rules
keep everything moving with a bounded pool:

- Whoever waits for a block holds none that is still to be written (`rpcgroup.cuda.outbound`). So every block that is
  out is on its way to a device, or written and to be acknowledged.
- The receiver of a chunk acknowledges it. If it waited for `ACK_BYTES` of the channel (8 MiB), a process that sends to
  eight others at once could have all of its 64 MiB written, less than 8 MiB to each, and wait for ever.
- What goes to one receiver takes no more than its `Share`: one that is slow, or whose connection is broken until it
  comes back or is given up, does not keep the others waiting.

A receiver never waits: where the pool has no block, a chunk is received into ordinary memory.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, Final

import torch

from rpcgroup.cuda.failed import keep_in_children
from rpcgroup.cuda.runtime import Runtime
from rpcgroup.wire.payloads import CHUNK

__all__ = ["LIMIT", "SMALL", "TRANSFER_PRIORITY", "PinnedPool", "Share", "Staging", "staging_of"]

LIMIT: Final = 64 << 20
"""Bytes of the process. Sixteen chunks: two for a sender, and some that are written but not yet acknowledged, for each
of several transfers at once."""
SMALL: Final = 64 << 10
"""Bytes up to which one more copy on the host costs less than a block that is in use until the acknowledgement."""
TRANSFER_PRIORITY: Final = -1
"""Of the streams of transfers, a high one: functions run on those of the other pool, whose kernels hold up no copy."""


class Staging:
    """A block that is in use for as long as this object, or a view of its memory, is referred to."""

    __slots__ = ("__weakref__", "_runtime", "pinned")

    def __init__(self, runtime: Runtime, pinned: torch.Tensor) -> None:
        self._runtime = runtime
        self.pinned = pinned
        """The block as uint8, for copies from and to devices."""

    def memory(self, size: int) -> memoryview:
        """The first `size` bytes, which the host is about to read or write."""
        pinned = self.pinned
        block: Any = (ctypes.c_char * pinned.nbytes).from_buffer(self._runtime.host_memory(pinned))
        block.staging = self
        return memoryview(block).cast("B")[:size]


def staging_of(data: Any) -> Staging | None:
    """That whose memory this is or shows, None for other memory."""
    staging: Staging | None = getattr(data.obj if isinstance(data, memoryview) else data, "staging", None)
    return staging


class PinnedPool:
    """Thread-safe. Blocks are pinned when they are first needed, and then kept: pinning is slow.

    `limit` in bytes bounds those in use and those kept together; `chunk` is the size of one.
    """

    def __init__(self, runtime: Runtime, limit: int = LIMIT, chunk: int = CHUNK) -> None:
        keep_in_children(self)
        self._runtime = runtime
        self.chunk = chunk
        self._idle: deque[torch.Tensor] = deque()
        # Blocks come back in whichever thread drops the last view, the garbage collector's included, which may be
        # inside any of these methods: this queue's `put` is made for that, a lock of ours could be held already.
        self._permits: SimpleQueue[None] = SimpleQueue()
        """One for each block that may be taken."""
        self.blocks = max(1, limit // chunk)
        for _ in range(self.blocks):
            self._permits.put(None)

    @property
    def in_use(self) -> int:
        """Blocks that are out."""
        return self.blocks - self._permits.qsize()

    def try_take(self) -> Staging | None:
        """A block; None where all are in use. Raises what makes pinning fail."""
        try:
            self._permits.get_nowait()
        except Empty:
            return None
        return self._taken()

    def take(self, timeout: float) -> Staging | None:
        """The same, waiting for one to come back for up to `timeout` seconds."""
        try:
            self._permits.get(timeout=timeout)
        except Empty:
            return None
        return self._taken()

    def _taken(self) -> Staging:
        try:
            # An idle one is there before its permit, so no more than `blocks` are ever pinned.
            pinned = self._idle.pop() if self._idle else self._runtime.pinned(self.chunk)
        except IndexError:  # another thread's garbage collector took it
            pinned = self._runtime.pinned(self.chunk)
        except BaseException:
            self._permits.put(None)
            raise
        staging = Staging(self._runtime, pinned)
        weakref.finalize(staging, self._give_back, pinned).atexit = False
        return staging

    def _give_back(self, pinned: torch.Tensor) -> None:
        self._idle.append(pinned)
        self._permits.put(None)


class Share:
    """Up to so many of a pool's blocks at a time; by default half of them. Thread-safe."""

    def __init__(self, pool: PinnedPool, blocks: int | None = None) -> None:
        self._pool = pool
        self.chunk = pool.chunk
        self.blocks = max(1, pool.blocks // 2) if blocks is None else blocks
        self._permits: SimpleQueue[None] = SimpleQueue()  # as the pool's
        for _ in range(self.blocks):
            self._permits.put(None)

    def try_take(self) -> Staging | None:
        """As of the pool; None also where the share is in use."""
        return self.take(0)

    def take(self, timeout: float) -> Staging | None:
        """As of the pool."""
        deadline = time.monotonic() + timeout
        try:
            self._permits.get(timeout > 0, timeout)
        except Empty:
            return None
        staging = None
        try:
            remaining = deadline - time.monotonic()
            staging = self._pool.take(remaining) if remaining > 0 else self._pool.try_take()
        finally:
            if staging is None:
                self._permits.put(None)
        if staging is not None:
            weakref.finalize(staging, self._permits.put, None).atexit = False
        return staging
