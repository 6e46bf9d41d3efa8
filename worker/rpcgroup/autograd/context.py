"""One autograd context at one worker: what of its graph crosses to others, and the gradients it collects."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rpcgroup.autograd.functions import RecvInfo, Send, attach_recv
from rpcgroup.autograd.gradients import accumulate
from rpcgroup.autograd.messages import COUNTER_BITS
from rpcgroup.autograd.port import Port
from rpcgroup.autograd.streams import ContextStreams

if TYPE_CHECKING:
    from rpcgroup.autograd.engine import Pass

__all__ = ["DistAutogradContext"]


class DistAutogradContext:
    """Made by its creator's `context()`, elsewhere by the first message of it. Thread-safe.

    `lock` guards everything that changes.
    """

    def __init__(self, context_id: int, creator: int) -> None:
        """`creator` is the incarnation of the worker that made it."""
        self.id = context_id
        self.creator = creator
        self.lock = threading.Lock()
        self.released = False
        self.known: dict[int, int] = {}
        """Worker ids by incarnation: whom this worker has sent a message of the context."""
        self.sends: dict[int, Send] = {}
        self.recvs: dict[int, Any] = {}
        self.grads: dict[torch.Tensor, torch.Tensor] = {}
        self.current_pass: Pass | None = None
        self.streams: ContextStreams | None = None
        self._latest: dict[int, int] = {}
        """The latest pass of each worker that has called `backward`, by worker id."""

    def add_send(
        self, message_id: int, to: int, worker_id: int | None, tensors: Sequence[torch.Tensor]
    ) -> bool:
        """A message of this context is about to go; false where the context has been released.

        `worker_id` is None for an answer: who asked knows the context already.
        """
        send = Send(to, tensors) if tensors else None
        with self.lock:
            if self.released:
                return False
            if worker_id is not None:
                self.known[to] = worker_id
            if send is not None:
                self.sends[message_id] = send
        return True

    def drop_send(self, message_id: int) -> None:
        """The call failed: nothing depends on what it sent."""
        with self.lock:
            self.sends.pop(message_id, None)

    def add_recv(
        self, message_id: int, sender: int, of_answer: bool, tensors: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The received tensors, of an answer or a request, with their place in the graph."""
        node, attached = attach_recv(RecvInfo(self.id, message_id, sender, len(tensors), of_answer), tensors)
        with self.lock:
            if not self.released:
                self.recvs[message_id] = node
        return attached

    def accumulate(self, leaf: torch.Tensor, grad: torch.Tensor) -> None:
        with self.lock:
            if not self.released:
                self.grads[leaf] = accumulate(self.grads.get(leaf), grad)

    def use_streams(self, port: Port) -> ContextStreams | None:
        """Those of its passes here; None in a worker that uses no devices."""
        with self.lock:
            if self.streams is None:
                self.streams = port.new_streams()
            return self.streams

    def begin_pass(self, running: Pass) -> None:
        """It takes the place of any before it. Raises `RuntimeError` where a later one of its caller has begun."""
        caller = running.id >> COUNTER_BITS
        with self.lock:
            if running.id < self._latest.get(caller, 0):
                raise RuntimeError(f"the gradients belong to an earlier backward pass of context {self.id}")
            self._latest[caller] = running.id
            before, self.current_pass = self.current_pass, running
        if before is not None:
            before.end()

    def end_pass(self, pass_id: int) -> None:
        with self.lock:
            running = self.current_pass
            if running is None or running.id != pass_id:
                return  # what took its place has ended it
            self.current_pass = None
        running.end()

    @property
    def in_pass(self) -> bool:
        """Something of a pass is still to be done here."""
        running = self.current_pass
        return running is not None and not running.finished

    def gradients(self) -> dict[torch.Tensor, torch.Tensor]:
        """For use on this thread's current streams."""
        with self.lock:
            grads, streams = dict(self.grads), self.streams
        if streams is not None:
            streams.hand_over(list(grads.values()))
        return grads

    def release(self) -> dict[int, int]:
        """Let everything go; returns those to be told. Idempotent."""
        with self.lock:
            known = self.known
            self.released = True
            self.known, self.sends, self.recvs, self.grads = {}, {}, {}, {}
            running, self.current_pass = self.current_pass, None
        if running is not None:
            running.end()
        return known

    # As torch names them.
    def _context_id(self) -> int:
        return self.id

    def _known_worker_ids(self) -> set[int]:
        with self.lock:
            return set(self.known.values())

    def _send_functions(self) -> dict[int, Send]:
        with self.lock:
            return dict(self.sends)

    def _recv_functions(self) -> dict[int, Any]:
        with self.lock:
            return dict(self.recvs)
