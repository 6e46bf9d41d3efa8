"""What distributed autograd needs of the agent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from rpcgroup.autograd.messages import Head
from rpcgroup.autograd.streams import ContextStreams
from rpcgroup.cuda.events import Events

__all__ = ["Done", "Lost", "Outgoing", "Port"]

Done = Callable[[BaseException | None], None]
"""Called once: with None, or with what went wrong."""
Lost = Callable[[BaseException], None]
Outgoing = Sequence[int] | BaseException
"""Weights that are given back, or what went wrong."""


class Port(Protocol):
    """Nothing here raises, and only `wait` blocks."""

    incarnation: int
    worker_id: int

    @property
    def rpc_timeout(self) -> float:
        """Seconds; 0: no limit."""

    def new_streams(self) -> ContextStreams | None:
        """For a context; None in a worker that uses no devices."""

    def events_of(self, tensors: Sequence[torch.Tensor | None]) -> Events | None:
        """Behind what this thread's current streams have to do for them; None where none is on a device."""

    def propagate(
        self, to: int, head: Head, grads: Sequence[torch.Tensor | None], lost: Lost, of_answer: bool
    ) -> None:
        """BACKWARD_AUTOGRAD_REQ to the worker of incarnation `to`, which is not this one. Nobody answers it.

        `of_answer`: the tensors came with an answer of that worker.

        `lost` is called where it cannot be sent, and where the worker is lost afterwards, until `forget(lost)`.
        """

    def report(self, head: Head, outcome: Outgoing, done: Done) -> None:
        """BACKWARD_AUTOGRAD_RESP to the worker that called backward, which is not this one: one attempt."""

    def forget(self, lost: Lost) -> None: ...

    def cleanup(self, to: int, context_id: int, done: Done) -> None:
        """CLEANUP_AUTOGRAD_CONTEXT_REQ: one attempt."""

    def ask(self, to: int, context_id: int, answer: Callable[[bool | None], None]) -> None:
        """AUTOGRAD_CONTEXT_QUERY: one attempt; None where there is no answer."""

    def call_later(self, delay: float, fn: Callable[[], None]) -> None: ...

    def is_gone(self, incarnation: int) -> bool:
        """It has died or left. One of whom this worker has not heard yet is not gone."""

    def others(self) -> list[int]:
        """The incarnations of all other members."""

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Block until it is set; false after `timeout` seconds."""

    def step_aside(self) -> None:
        """This thread is about to block."""
