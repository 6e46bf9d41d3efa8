"""What is kept once a device has failed for good, or in a forked child, which has none.

Memory that more streams have used than that of its allocation is freed behind events. A device that has failed gives
none, and torch, which cannot raise where memory is freed, ends the process: a worker that is to go on for calls without
devices must not free it.

Source: `insert_events` of torch's caching allocator (`c10/cuda/CUDACachingAllocator.cpp`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Final

from rpcgroup.cuda.runtime import Runtime, Stream

__all__ = ["keep", "keep_in_children", "keep_where_failed"]

_kept: Final[list[object]] = []
_for_children: Final[weakref.WeakSet[object]] = weakref.WeakSet()


def keep(things: object) -> None:
    """For as long as the process lives."""
    _kept.append(things)


def keep_where_failed(runtime: Runtime, streams: Iterable[Stream], things: object) -> None:
    """`things` are about to be dropped, and have memory that these streams have used. Does not block."""
    try:
        for stream in streams:
            runtime.record(stream)
    except Exception:
        keep(things)


def keep_in_children(thing: object) -> None:
    """It has memory that is freed with the help of the devices; a forked child may drop it."""
    _for_children.add(thing)


def _keep_in_child() -> None:
    _kept.extend(_for_children)


os.register_at_fork(after_in_child=_keep_in_child)
