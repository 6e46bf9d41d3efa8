"""What is kept once a device has failed for good.

Memory that more streams have used than that of its allocation is freed behind events. A device that has failed gives
none, and torch, which cannot raise where memory is freed, ends the process: a worker that is to go on for calls without
devices must not free it.

Source: `insert_events` of torch's caching allocator (`c10/cuda/CUDACachingAllocator.cpp`).
"""

from __future__ import annotations

from typing import Final

from rpcgroup.cuda.runtime import Event, Runtime, Stream

__all__ = ["has_failed", "keep_where_failed"]

_kept: Final[list[object]] = []
"""For as long as the process lives."""


def has_failed(runtime: Runtime, event: Event) -> bool:
    """Whether the event's device has; what was enqueued behind it counts, too. Does not block."""
    try:
        runtime.is_done(event)
    except Exception:
        return True
    return False


def keep_where_failed(runtime: Runtime, stream: Stream, things: object) -> None:
    """`things` have memory of the stream's device, and are about to be dropped."""
    try:
        failed = has_failed(runtime, runtime.record(stream))
    except Exception:
        failed = True
    if failed:
        _kept.append(things)


def keep(things: object) -> None:
    _kept.append(things)
