"""One backward pass at one worker.

Every gradient that arrives makes a stage of the graph runnable: it is run here, and what reaches a recv function is
sent on to the worker of the matching send function, with a part of the arrival's weight. What is left of that when
everything has been run here goes back to the caller of `backward`, and so does an error. No thread waits in between.

So a pass in which some send function is never heard of does not end, but for its timeout: it is not known then
what the gradients are without it. That is the price of FAST mode.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rpcgroup.autograd import ddp
from rpcgroup.autograd.functions import RECV_NAME, SEND_NAME, RecvInfo, is_recv
from rpcgroup.autograd.graph import Edge, LocalGraph
from rpcgroup.autograd.messages import Head
from rpcgroup.autograd.port import Lost, Outgoing, Port
from rpcgroup.autograd.runner import Runner
from rpcgroup.autograd.weight import share
from rpcgroup.cuda.events import Events
from rpcgroup.errors import RpcGroupError

if TYPE_CHECKING:
    from rpcgroup.autograd.context import DistAutogradContext

__all__ = ["Arrival", "Pass"]

ROOTS = 0
"""The message id under which the roots' own gradients arrive; a message never has it."""


class Arrival(NamedTuple):
    """The gradients of a send function, or of the roots."""

    message_id: int
    weight: int
    grads: Sequence[torch.Tensor | None]
    events: Events | None = None
    """Of those on devices."""


class Pass:
    """Made by the first that this worker hears of a pass; a later pass of the context takes its place.

    `_lock` guards `_inbox`, `_running` and `_ended`: the thread that finds nobody running runs, for the others too.
    """

    def __init__(
        self,
        context: DistAutogradContext,
        port: Port,
        head: Head,
        report: Callable[[Outgoing], None],
        roots: Sequence[Edge] = (),
    ) -> None:
        """`head` is that of the pass's first message; `report` tells its caller."""
        self.id = head.pass_id
        self.profiled: SimpleQueue[Arrival | None] | None = None
        """What arrives is put there, for the one thread that has a profile."""
        self._context = context
        self._port = port
        self._head = head
        self._report = report
        self._roots = roots
        self._lock = threading.Lock()
        self._inbox: deque[Arrival] = deque()
        self._running = False
        self._ended = False
        self._error: BaseException | None = None
        self._graph: LocalGraph | None = None
        self._receivers: list[int] = []
        """Of the messages, by their number in the graph."""
        self._entries: dict[int, tuple[int, Sequence[Edge]]] = {}
        """By message id: number in the graph, and the edges that its gradients enter by."""
        self._streams = context.use_streams(port)
        self._runner = Runner(head.retain_graph, None if self._streams is None else self._streams.retain)
        self._left: list[int] = []
        """Weights that have not been sent on, while something is still to be run here."""
        self._watched: dict[int, Lost] = {}
        """By incarnation: what is called where a worker is lost that has got gradients from here."""

    def arrive(self, arrival: Arrival) -> None:
        """Run what it makes runnable, now or by the thread that is at it."""
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
                        self._clear()
                    return
            self._run(batch)

    def end(self) -> None:
        """Nothing more will come of it: after its end, or where it is given up. Idempotent."""
        with self._lock:
            self._ended = True
            if not self._running:
                self._clear()

    @property
    def unheard(self) -> list[int]:
        """The incarnations of those who got tensors from here and have sent no gradients, one for each message."""
        return [self._receivers[number] for number in self._graph.missing] if self._graph is not None else []

    @property
    def finished(self) -> bool:
        """Nothing is left to be done here."""
        return self._error is not None or (self._graph is not None and self._graph.finished)

    def _clear(self) -> None:
        self._runner.give_back()
        while self._watched:
            self._port.forget(self._watched.popitem()[1])

    def _run(self, batch: list[Arrival]) -> None:
        if self._streams is None:
            self._run_batch(batch)
        else:
            with self._streams.use([arrival.events for arrival in batch]):
                self._run_batch(batch)

    def _run_batch(self, batch: list[Arrival]) -> None:
        try:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise RuntimeError("the gradients came after the end of their backward pass")
            received = self._run_stage(batch)
        except BaseException as exc:
            self._error = self._as_error(exc)
            self._report(self._error)
            return
        weights, self._left = share([*self._left, *(arrival.weight for arrival in batch)], len(received))
        if self._left and self.finished:
            left, self._left = self._left, []
            self._report(left)
        for (info, grads), weight in zip(received, weights, strict=True):
            if self.profiled is None:
                self._send_on(info, weight, grads)
            else:
                with torch.autograd.profiler.record_function(RECV_NAME):
                    self._send_on(info, weight, grads)

    def _send_on(self, info: RecvInfo, weight: int, grads: list[Any]) -> None:
        if info.sender == self._port.incarnation:
            with self._lock:
                self._inbox.append(Arrival(info.message_id, weight, grads))  # this thread runs it next
            return
        lost = self._watched.get(info.sender)
        if lost is None:
            lost = self._watched[info.sender] = partial(self._report)
        head = self._head
        head = Head(head.context_id, info.message_id, 0, head.pass_id, head.origin, weight, head.retain_graph)
        self._port.propagate(info.sender, head, grads, lost, info.of_answer)

    def _run_stage(self, batch: list[Arrival]) -> list[tuple[RecvInfo, list[Any]]]:
        """Returns what is to be sent on."""
        graph = self._graph
        if graph is None:
            graph = self._graph = self._make_graph()
        for message_id, _, grads, _ in batch:
            number, edges = self._entry(message_id)
            if not graph.arrive(number):
                raise RuntimeError(f"the gradients of autograd message {message_id} arrived twice")
            if self.profiled is None or message_id == ROOTS:
                self._runner.put(edges, grads)
            else:
                with torch.autograd.profiler.record_function(SEND_NAME):
                    self._runner.put(edges, grads)
        results = self._runner.run(graph.take())
        leaves = results.leaves
        if graph.finished:
            leaves = [*leaves, *self._runner.give_back()]
        for leaf, grad in leaves:
            self._context.accumulate(leaf, grad)
        if self._streams is not None:
            self._streams.finish_stage([grad for _, grad in leaves])
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
        for number, (_, send) in enumerate(sends, 1):
            if self._port.is_gone(send.to):
                graph.arrive(number)  # its receiver is dead, and the program has come to terms with that
        self._receivers = [self._port.incarnation, *(send.to for _, send in sends)]
        reduced = ddp.parameters()
        if reduced:
            leaves = [node.variable for node in graph.terminals if hasattr(node, "variable")]
            self._runner.keep([leaf for leaf in leaves if id(leaf) in reduced])
        return graph

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


def _next_of(node: Any) -> Sequence[tuple[Any, int]]:
    return () if is_recv(node) else node.next_functions
