"""What the worker needs of an accelerator: streams, events, memory. A small interface with two implementations.

`rpcgroup.cuda.torch_cuda.TorchCuda` is CUDA's. `rpcgroup.testing.recording_device.RecordingDevice` has no device at
all: it notes what is asked of it, for a checker to prove the order. The rules that both are used by:

- A tensor is used on a stream only after that stream has waited for an event recorded behind its last write.
- Whoever hands a tensor on hands on an event for it, recorded on the stream that wrote it.
- A tensor that is used on another stream than the one it was allocated on is `retain`ed there, so that its memory is
  not used again before that use is over.
- The host reads or writes pinned memory only after it has `synchronize`d with what was enqueued for it.

Source: PyTorch's notes on CUDA semantics (streams, events, the caching allocator).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from rpcgroup.cuda.ipc import Ipc

__all__ = ["Event", "Runtime", "Stream", "current_runtime", "use_runtime"]

Event = Any
"""A place in a stream's work. Opaque: only the runtime that recorded it knows what it is."""


class Stream(Protocol):
    """A queue of work of one device, done in order."""

    @property
    def device(self) -> torch.device: ...


class Runtime(Protocol):
    """Thread-safe; the current streams are each thread's own. A failure of the device raises as torch raises it."""

    tensor_type: type[torch.Tensor]
    """The exact type of the tensors on its devices."""

    def device_count(self) -> int: ...

    def ipc(self) -> Ipc | None:
        """Shares memory of the devices with one other process; None: it cannot."""
        ...

    def current_stream(self, device: torch.device) -> Stream:
        """This thread's, of that device."""
        ...

    def new_stream(self, device: torch.device, priority: int = 0) -> Stream:
        """The next of the pool; a negative priority is a high one, as with torch."""
        ...

    def use(self, streams: Iterable[Stream]) -> AbstractContextManager[None]:
        """Make them this thread's current ones, each of its own device; the current device stays."""
        ...

    def record(self, stream: Stream) -> Event:
        """An event behind all that has been enqueued on the stream."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """What is enqueued on the stream from now on runs after the event. Does not block."""
        ...

    def synchronize(self, event: Event) -> None:
        """Block until all before the event is done; raises what the device has failed with."""
        ...

    def is_done(self, event: Event) -> bool: ...

    def retain(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Tell the allocator that the stream uses the tensor."""
        ...

    def empty(self, size: int, device: torch.device) -> torch.Tensor:
        """`size` bytes of the device as uint8, allocated on the current stream; raises `torch.OutOfMemoryError`."""
        ...

    def pinned(self, size: int) -> torch.Tensor:
        """`size` bytes of the host as uint8, from and to which a copy does not block."""
        ...

    def host_memory(self, pinned: torch.Tensor) -> memoryview:
        """The bytes of pinned memory, which the host is about to read or write."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy on the current stream: of the device of `source`, else of `target`. Does not block.

        Between two devices it is behind the current streams of both, and they are behind it.
        """
        ...


_runtime: Runtime | None = None
_looked = False


def current_runtime() -> Runtime | None:
    """This process's, None where it has no accelerator that torch can use."""
    global _runtime, _looked
    if not _looked:
        _runtime, _looked = _find(), True
    return _runtime


def use_runtime(runtime: Runtime | None) -> None:
    """Put another in its place, for groups that are joined from now on."""
    global _runtime, _looked
    _runtime, _looked = runtime, True


def _find() -> Runtime | None:
    if not torch.cuda.is_available():
        return None
    from rpcgroup.cuda.torch_cuda import TorchCuda

    return TorchCuda()
