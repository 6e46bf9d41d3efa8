"""One backward pass at one worker.

Every gradient that arrives makes a stage of the graph runnable: it is run here, and what reaches a recv function is
sent on to the worker of the matching send function. An arrival is answered when its stage has run and everything
that the stage sent has been answered. So the caller of `backward`, whose roots are the first arrival, has its
answer when all is done everywhere; and no thread waits in between.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rpcgroup.autograd import ddp
from rpcgroup.autograd.functions import RECV_NAME, SEND_NAME, RecvInfo, is_recv
from rpcgroup.autograd.graph import Edge, LocalGraph
from rpcgroup.autograd.messages import Head
from rpcgroup.autograd.port import Done, Port
from rpcgroup.autograd.runner import Runner
from rpcgroup.errors import RpcGroupError

if TYPE_CHECKING:
    from rpcgroup.autograd.context import DistAutogradContext

__all__ = ["Arrival", "Pass"]

ROOTS = 0
"""The message id under which the roots' own gradients arrive; a message never has it."""

_log = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """The gradients of a send function, or of the roots."""

    message_id: int
    grads: Sequence[torch.Tensor | None]
    done: Done


class Pass:
    """Made by the first that this worker hears of a pass; a later pass of the context takes its place.

    `_lock` guards `_inbox`, `_running` and `_ended`: the thread that finds nobody running runs, for the others too.
    """

    def __init__(
        self,
        context: DistAutogradContext,
        port: Port,
        pass_id: int,
        retain_graph: bool,
        roots: Sequence[Edge] = (),
    ) -> None:
        self.id = pass_id
        self.profiled: SimpleQueue[Arrival | None] | None = None
        """What arrives is put there, for the one thread that has a profile."""
        self._context = context
        self._port = port
        self._retain_graph = retain_graph
        self._roots = roots
        self._lock = threading.Lock()
        self._inbox: deque[Arrival] = deque()
        self._running = False
        self._ended = False
        self._error: BaseException | None = None
        self._graph: LocalGraph | None = None
        self._entries: dict[int, tuple[int, Sequence[Edge]]] = {}
        """By message id: number in the graph, and the edges that its gradients enter by."""
        self._runner = Runner(retain_graph)

    def arrive(self, arrival: Arrival) -> None:
        """Run what it makes runnable, now or by the thread that is at it; `arrival.done` is called in the end."""
        if self.profiled is not None:
            self.profiled.put(arrival)
        else:
            self.run(arrival)

    def run(self, arrival: Arrival) -> None:
        with self._lock:
            self._inbox.append(arrival)
            if self._running:
                return
            self._running = True
        while True:
            with self._lock:
                batch = list(self._inbox)
                self._inbox.clear()
                if not batch:
                    self._running = False
                    if self._ended:
                        self._runner.give_back()
                    return
            self._run(batch)

    def end(self) -> None:
        """Nothing more will come of it: after its end, or where it is given up. Idempotent."""
        with self._lock:
            self._ended = True
            if not self._running:
                self._runner.give_back()

    @property
    def finished(self) -> bool:
        return self._error is not None or (self._graph is not None and self._graph.finished)

    def _run(self, batch: list[Arrival]) -> None:
        try:
            if self._error is not None:
                raise self._error
            received = self._run_stage(batch)
        except BaseException as exc:
            self._error = error = self._as_error(exc)
            for arrival in batch:
                arrival.done(error)
            return
        answer = _Answer(batch, len(received))
        for info, grads in received:
            head = Head(info.context_id, info.message_id, pass_id=self.id, retain_graph=self._retain_graph)
            with self._event(RECV_NAME):
                self._port.propagate(info.sender, head, grads, answer.one_done)

    def _run_stage(self, batch: list[Arrival]) -> list[tuple[RecvInfo, list[Any]]]:
        """Returns what is to be sent on."""
        graph = self._graph
        if graph is None:
            graph = self._graph = self._make_graph()
        for message_id, grads, _ in batch:
            number, edges = self._entry(message_id)
            if not graph.arrive(number):
                raise RuntimeError(f"the gradients of autograd message {message_id} arrived twice")
            with self._event(SEND_NAME) if message_id != ROOTS else nullcontext():
                self._runner.put(edges, grads)
        results = self._runner.run(graph.take())
        for leaf, grad in results.leaves:
            self._context.accumulate(leaf, grad)
        if graph.finished:
            for leaf, grad in self._runner.give_back():
                self._context.accumulate(leaf, grad)
        for info, _ in results.received:
            if info.context_id != self._context.id:
                raise RuntimeError(
                    f"a tensor that came from another worker in autograd context {info.context_id} is used in "
                    f"context {self._context.id}: bring it there again within that context"
                )
        return results.received

    def _make_graph(self) -> LocalGraph:
        with self._context.lock:
            sends = list(self._context.sends.items())
        self._entries[ROOTS] = ROOTS, self._roots
        for number, (message_id, send) in enumerate(sends, 1):
            self._entries[message_id] = number, send.next_functions
        graph = LocalGraph([edges for _, edges in self._entries.values()], _next_of)
        if not self._roots:
            graph.arrive(ROOTS)
        reduced = ddp.parameters()
        if reduced:
            leaves = [node.variable for node in graph.terminals if hasattr(node, "variable")]
            self._runner.keep([leaf for leaf in leaves if id(leaf) in reduced])
        return graph

    def _event(self, name: str) -> AbstractContextManager[Any]:
        """Of a profile of the thread that called `backward`."""
        return nullcontext() if self.profiled is None else torch.autograd.profiler.record_function(name)

    def _entry(self, message_id: int) -> tuple[int, Sequence[Edge]]:
        try:
            return self._entries[message_id]
        except KeyError:
            raise RuntimeError(
                f"autograd message {message_id} has no send function in context {self._context.id}"
            ) from None

    def _as_error(self, exc: BaseException) -> BaseException:
        if isinstance(exc, RpcGroupError) or exc is self._error:
            return exc
        error = RuntimeError(f"Error on Node {self._port.worker_id}: {exc}")
        error.__cause__ = exc
        return error


class _Answer:
    """Of one stage: given when everything that it sent has been answered, or with the first that fails."""

    def __init__(self, batch: list[Arrival], pending: int) -> None:
        self._batch = batch
        self._pending = pending
        self._lock = threading.Lock()  # guards _pending, _batch
        if not pending:
            self._give(batch, None)

    def one_done(self, error: BaseException | None) -> None:
        with self._lock:
            self._pending -= 1
            if error is None and self._pending:
                return
            batch, self._batch = self._batch, []
        self._give(batch, error)

    def _give(self, batch: list[Arrival], error: BaseException | None) -> None:
        for arrival in batch:
            arrival.done(error)


def _next_of(node: Any) -> Sequence[tuple[Any, int]]:
    return () if is_recv(node) else node.next_functions
