"""What a body can be, and what is in it: the terms in which a codec and its callers speak."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import torch

from rpcgroup.errors import MessageTooLargeError
from rpcgroup.wire.tensors import OnDevice

__all__ = [
    "FORMAT_MASK",
    "NOTHING",
    "OBJECTS",
    "PICKLE",
    "TENSORS",
    "Encoded",
    "Placement",
    "ReferenceForks",
    "require_size",
]

NOTHING: Final = 0
PICKLE: Final = 1
TENSORS: Final = 2
OBJECTS: Final = 3
FORMAT_MASK: Final = 3


class Encoded(NamedTuple):
    """`flags` (one of the formats), the body, the buffers that follow it, the data that go from device to device."""

    flags: int
    body: bytes
    buffers: list[memoryview]
    payloads: list[OnDevice] | None = None


class ReferenceForks(Protocol):
    """Turns references into plain data for one receiver; `fork_failed` takes one back that was not sent."""

    def fork(self, reference: Any) -> Any: ...

    def fork_failed(self, fork: Any) -> None: ...


class Placement(Protocol):
    """Where the tensors of a message to one worker go."""

    moves_cpu: bool
    """Those of the CPU may go to a device."""

    def target(self, tensor: torch.Tensor) -> int:
        """Index of the receiver's device, -1 for the CPU; raises `SerializationError` where there is none."""
        ...


def require_size(size: int, cap: int) -> None:
    """Raises `MessageTooLargeError`."""
    if size > cap:
        raise MessageTooLargeError(
            f"cannot be sent: it pickles to {size} bytes, and the cap is {cap}. "
            "Large tensors and numpy arrays do not count: send large data as those"
        )
