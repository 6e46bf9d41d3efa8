"""What distributed autograd needs of the agent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from rpcgroup.autograd.messages import Head

__all__ = ["Done", "Port"]

Done = Callable[[BaseException | None], None]
"""Called once: with None, or with what went wrong."""


class Port(Protocol):
    incarnation: int
    worker_id: int

    def propagate(self, to: int, head: Head, grads: Sequence[torch.Tensor | None], done: Done) -> None:
        """BACKWARD_AUTOGRAD_REQ to the worker of incarnation `to`, which may be this one. Does not block or raise."""

    def cleanup(self, to: int, context_id: int, done: Done) -> None:
        """CLEANUP_AUTOGRAD_CONTEXT_REQ: one attempt. Does not block or raise."""

    def call_later(self, delay: float, fn: Callable[[], None]) -> None: ...

    def is_member(self, incarnation: int) -> bool: ...

    def incarnation_of(self, worker_id: int) -> int | None:
        """Of the member that has this id now."""

    def wait(self, event: threading.Event) -> None:
        """Block until it is set."""

    def step_aside(self) -> None:
        """This thread is about to block."""
