"""Receive memory that is used again: page faults of new memory cost more than the copies themselves.

Buffers of 1 MB and more are anonymous maps in size classes; a map comes back when the last view of the tensor
that was received into it dies. What is kept idle is bounded.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import deque
from typing import Any, Final

__all__ = ["ReceivePool"]

SMALLEST: Final = 1 << 20
"""Bytes; below, the allocator's own caching is as good."""
IDLE_LIMIT: Final = 256 << 20
"""Bytes kept for the next message; beyond, memory goes back to the system."""
MAX_TYPES: Final = 1024
"""Of array types kept: making one costs more than the look-up."""


class ReceivePool:
    """Thread-safe without a lock: a deque's operations are atomic, and the bound may be off for a moment.

    What comes back takes the place of idle memory of other sizes, so a program may change its sizes.
    """

    def __init__(self, idle_limit: int = IDLE_LIMIT) -> None:
        self._free: dict[int, deque[mmap.mmap]] = {}
        """By capacity."""
        self._types: dict[int, Any] = {}
        self._idle_limit = idle_limit

    @property
    def idle_bytes(self) -> int:
        return sum(capacity * len(free) for capacity, free in list(self._free.items()))

    def allocate(self, size: int) -> Any:
        """A writable buffer of `size` bytes."""
        if size < SMALLEST:
            return bytearray(size)
        capacity = size_class(size)
        try:
            memory = self._free[capacity].popleft()
        except (KeyError, IndexError):
            memory = mmap.mmap(-1, capacity)
        kind = self._types.get(size)
        if kind is None:
            if len(self._types) >= MAX_TYPES:
                self._types.clear()
            kind = self._types[size] = ctypes.c_char * size
        buffer = kind.from_buffer(memory)
        weakref.finalize(buffer, self._give_back, capacity, memory).atexit = False
        return buffer

    def _give_back(self, capacity: int, memory: mmap.mmap) -> None:
        # Runs in whichever thread drops the last view, the garbage collector's included: no lock.
        if capacity <= self._idle_limit and self._make_room(capacity):
            self._free.setdefault(capacity, deque()).append(memory)

    def _make_room(self, needed: int) -> bool:
        excess = self.idle_bytes + needed - self._idle_limit
        for capacity, free in list(self._free.items()):
            while excess > 0 and capacity != needed:
                try:
                    free.popleft()
                except IndexError:
                    break
                excess -= capacity
        return excess <= 0


def size_class(size: int) -> int:
    """The capacity that serves `size`: eight classes per power of two, so at most an eighth is wasted."""
    step = max(mmap.PAGESIZE, 1 << (size.bit_length() - 4))
    return -(-size // step) * step
