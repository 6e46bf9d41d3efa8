"""Memory of a device that another process of the same host reads by itself: the interface, with two implementations.

`rpcgroup.cuda.torch_ipc.TorchIpc` is CUDA's, `rpcgroup.testing.recording_ipc.RecordingIpc` one without a device.
Nothing is unpickled: a blob has fixed fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from rpcgroup.cuda.runtime import Event

__all__ = ["Export", "Ipc"]


class Export(NamedTuple):
    blob: bytes
    kept: object
    """What must be referred to for as long as the blob can be opened and its memory read."""
    end: Callable[[], None]
    """To be called before that is dropped, whether it has been opened or not."""


class Ipc(Protocol):
    """With one other process. Thread-safe."""

    def export(self, tensor: torch.Tensor) -> Export:
        """Of a flat tensor of uint8, behind what the current stream of its device has to do.

        Raises where its memory cannot be shared.
        """
        ...

    def device_of(self, blob: bytes) -> torch.device:
        """The device here that has the memory. Raises `ValueError` where none has."""
        ...

    def open(self, blob: bytes) -> tuple[torch.Tensor, Event]:
        """The tensor as uint8, and the event behind what it was written by. Raises where that is not possible.

        Whoever drops the last reference to it may have to wait for the current stream of its device.
        """
        ...

    def close(self) -> None:
        """The other process is gone: keep nothing of its memory open. Idempotent."""
        ...
