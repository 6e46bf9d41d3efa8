"""All autograd contexts of one worker: who makes one, who finds one, and who ends them."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Final

import torch

from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.autograd.engine import ROOTS, Arrival, Pass
from rpcgroup.autograd.functions import Send
from rpcgroup.autograd.messages import COUNTER_BITS, Head
from rpcgroup.autograd.outcome import Outcome
from rpcgroup.autograd.port import Outgoing, Port
from rpcgroup.autograd.weight import WHOLE
from rpcgroup.cuda.events import Events
from rpcgroup.errors import CallTimeoutError

__all__ = ["Container", "CurrentContext"]

RELEASED_KEPT: Final = 1024
"""Ids of released contexts, for messages of them that are late."""
RETRY_SECONDS: Final = 0.1
"""Before a release or an outcome is told again to one who did not answer; doubled each time."""
LONGEST_RETRY_SECONDS: Final = 5.0
INCARNATION_BITS: Final = 16
"""Of the counter: a worker that comes back under its old id makes other contexts than before."""

_log = logging.getLogger(__name__)


class CurrentContext(threading.local):
    """Of one worker: the context that the running thread is in."""

    context: DistAutogradContext | None = None


class Container:
    """Of one worker, from join to shutdown. Thread-safe; `_lock` guards the two tables, and who begins a pass."""

    def __init__(self, port: Port, thread: CurrentContext) -> None:
        self.port = port
        self.thread = thread
        self._lock = threading.Lock()
        self._contexts: dict[int, DistAutogradContext] = {}
        self._released: dict[int, bool] = {}
        """By id: whether all members have been told."""
        self._forgotten: dict[int, int] = {}
        """By worker id: the highest id among the contexts of its making that have left `_released`."""
        self._outcomes: dict[int, Outcome] = {}
        """Of the passes that this worker has called, by their ids."""
        self._closed = False
        start = (port.incarnation % (1 << INCARNATION_BITS)) << (COUNTER_BITS - INCARNATION_BITS)
        prefix = port.worker_id << COUNTER_BITS
        self._context_ids = itertools.count(prefix | start)
        self._message_ids = itertools.count(prefix | start | 1)
        self._pass_ids = itertools.count(prefix | start)

    # -- contexts -----------------------------------------------------------------------------------------

    def new_context(self) -> DistAutogradContext:
        """This thread is in it from now on; raises `RuntimeError` where it is in one already."""
        current = self.thread.context
        if current is not None and not current.released:
            raise RuntimeError(f"Already have an autograd context id for this thread: {current.id}")
        context = DistAutogradContext(next(self._context_ids), self.port.incarnation)
        with self._lock:
            self._contexts[context.id] = context
        self.thread.context = context
        return context

    def current_context(self) -> DistAutogradContext:
        context = self.thread.context
        if context is None or context.released:
            raise RuntimeError(
                "Current thread doesn't have a valid autograd context. Please wrap your code using: "
                "`with torch.distributed.autograd.context() as context_id` to generate a valid context"
            )
        return context

    def retrieve(self, context_id: int) -> DistAutogradContext:
        """Raises `RuntimeError` where there is none of that id, any more or at all."""
        context = self._contexts.get(context_id)
        if context is None:
            raise RuntimeError(f"Could not find autograd context with id: {context_id}")
        return context

    def introduce(self, context_id: int, creator: int, sender: int) -> DistAutogradContext | None:
        """A message of the context that `creator` made has come from `sender`; None where it has been released."""
        with self._lock:
            context = self._contexts.get(context_id)
            in_doubt = False
            if context is None:
                if context_id in self._released or self._closed or creator == self.port.incarnation:
                    return None
                in_doubt = context_id <= self._forgotten.get(context_id >> COUNTER_BITS, 0)
                context = self._contexts[context_id] = DistAutogradContext(context_id, creator)
        # The release may have come first, or the sender died before this was noted: nobody else would look.
        if in_doubt or self.port.is_gone(sender):
            self._ask(context)
        return context

    def has(self, context_id: int) -> bool:
        return context_id in self._contexts

    def new_message_id(self) -> int:
        return next(self._message_ids)

    # -- release ------------------------------------------------------------------------------------------

    def release(self, context_id: int) -> None:
        """End it here and on all workers that it has been at. Raises `RuntimeError` where there is none."""
        context = self.retrieve(context_id)
        if self.thread.context is context:
            self.thread.context = None
        self._release(context)

    def on_cleanup(self, context_id: int, sender: int) -> None:
        """CLEANUP_AUTOGRAD_CONTEXT_REQ. Idempotent."""
        with self._lock:  # a message of it that comes now finds it here, or noted
            context = self._contexts.get(context_id)
            if context is None:
                self._note_released(context_id)
        if context is not None:
            self._release(context, sender)

    def member_died(self, incarnation: int) -> None:
        """Release what it made. Of other contexts it may have been the one that would pass the release on."""
        with self._lock:
            contexts = [c for c in self._contexts.values() if c.creator != self.port.incarnation]
        for context in contexts:
            if context.creator == incarnation:
                self._release(context)
            else:
                self._ask(context)

    def close(self) -> None:
        """Forget everything, tell nobody. Idempotent."""
        with self._lock:
            self._closed = True
            contexts, self._contexts = self._contexts, {}
        for context in contexts.values():
            context.release()

    def _release(self, context: DistAutogradContext, told_by: int | None = None) -> None:
        with self._lock:
            if self._contexts.pop(context.id, None) is None:
                return
            self._note_released(context.id)
        known = context.release()
        for incarnation in known:
            if incarnation not in (told_by, self.port.incarnation):
                self._tell(incarnation, context.id, RETRY_SECONDS)

    def _note_released(self, context_id: int) -> None:
        self._released.setdefault(context_id, False)
        if len(self._released) > RELEASED_KEPT:
            forgotten = next(iter(self._released))
            del self._released[forgotten]
            maker = forgotten >> COUNTER_BITS
            self._forgotten[maker] = max(forgotten, self._forgotten.get(maker, 0))
            if len(self._forgotten) > RELEASED_KEPT:
                del self._forgotten[next(iter(self._forgotten))]

    def _tell(self, to: int, context_id: int, delay: float) -> None:
        """Again and again, until it is answered. If the other is gone, it passes nothing on: all are told then."""
        if self._closed:
            return
        if self.port.is_gone(to):
            self._tell_all(context_id)
            return

        def done(error: BaseException | None) -> None:
            if error is not None:
                longer = min(2 * delay, LONGEST_RETRY_SECONDS)
                self.port.call_later(delay, partial(self._tell, to, context_id, longer))

        self.port.cleanup(to, context_id, done)

    def _tell_all(self, context_id: int) -> None:
        with self._lock:
            if self._released.get(context_id, True):
                return
            self._released[context_id] = True
        for incarnation in self.port.others():
            self._tell(incarnation, context_id, RETRY_SECONDS)

    def _ask(self, context: DistAutogradContext, delay: float = RETRY_SECONDS) -> None:
        """Whether its maker has it still; released where it has not, or is gone."""
        if self._closed or context.released:
            return
        creator = context.creator
        if self.port.is_gone(creator):
            _log.info("autograd context %d is released: the worker that made it is gone", context.id)
            self._release(context)
            return

        def answer(there: bool | None) -> None:
            if there is None:
                longer = min(2 * delay, LONGEST_RETRY_SECONDS)
                self.port.call_later(delay, partial(self._ask, context, longer))
            elif not there:
                self._release(context)

        self.port.ask(creator, context.id, answer)

    # -- backward -----------------------------------------------------------------------------------------

    def backward(self, context_id: int, roots: list[torch.Tensor], retain_graph: bool) -> None:
        """Run a backward pass and wait for its end on all workers."""
        context = self.retrieve(context_id)
        gradients = root_gradients(roots)
        roots_arrive = Arrival(ROOTS, WHOLE, gradients, self.port.events_of([*roots, *gradients]))
        sent = Send(self.port.incarnation, roots)
        head = Head(context_id, 0, 0, next(self._pass_ids), self.port.incarnation, WHOLE, retain_graph)
        if not torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            ended = threading.Event()
            with self._pass(context, head, sent, ended.set) as (running, outcome):
                self._run(context, running.arrive, roots_arrive)
                timeout = self.port.rpc_timeout
                if not self.port.wait(ended, timeout or None):
                    outcome.fail(_timeout_error(timeout, running))
        else:
            with torch.autograd.profiler.record_function("torch::distributed::autograd::backward"):
                outcome = self._run_profiled(context, head, sent, roots_arrive)
        if outcome.error is not None:
            raise outcome.error

    def _run_profiled(
        self, context: DistAutogradContext, head: Head, sent: Send, roots_arrive: Arrival
    ) -> Outcome:
        """All that this worker does for the pass is done by this thread, for its profile to see it."""
        self.port.step_aside()
        arrivals: SimpleQueue[Arrival | None] = SimpleQueue()
        with self._pass(context, head, sent, partial(arrivals.put, None)) as (running, outcome):
            running.profiled = arrivals
            arrival: Arrival | None = roots_arrive
            timeout = self.port.rpc_timeout or None
            try:
                while arrival is not None:
                    self._run(context, running.run, arrival)
                    arrival = arrivals.get(True, timeout)
            except queue.Empty:
                outcome.fail(_timeout_error(timeout or 0, running))
        return outcome

    @contextmanager
    def _pass(
        self, context: DistAutogradContext, head: Head, sent: Send, ended: Callable[[], None]
    ) -> Iterator[tuple[Pass, Outcome]]:
        outcome = Outcome(ended)
        running = Pass(context, self.port, head, partial(_tell_outcome, outcome), sent.next_functions)
        self._outcomes[head.pass_id] = outcome
        try:
            context.begin_pass(running)
            yield running, outcome
        finally:
            with self._lock:
                del self._outcomes[head.pass_id]
            context.end_pass(head.pass_id)

    def on_propagation(
        self, head: Head, grads: Sequence[torch.Tensor | None], events: Events | None = None
    ) -> None:
        """BACKWARD_AUTOGRAD_REQ. What goes wrong is told to the caller of the pass."""
        report = partial(self.report, head)
        try:
            context = self.retrieve(head.context_id)
            with self._lock:  # of the messages of a pass, one begins it
                if head.origin == self.port.incarnation and head.pass_id not in self._outcomes:
                    return  # it is over here, and would begin anew
                running = context.current_pass
                if running is None or running.id != head.pass_id:
                    running = Pass(context, self.port, head, report)
                    context.begin_pass(running)
        except Exception as exc:
            report(exc)
            return
        self._run(context, running.arrive, Arrival(head.message_id, head.weight, grads, events))

    def on_outcome(self, head: Head, outcome: Outgoing) -> None:
        """BACKWARD_AUTOGRAD_RESP, of a pass that was called here; it can be over."""
        mine = self._outcomes.get(head.pass_id)
        if mine is not None and not mine.is_repeated(head.message_id):
            _tell_outcome(mine, outcome)

    def report(self, head: Head, outcome: Outgoing) -> None:
        """Tell the caller of the pass of that message what has become of it."""
        head = head._replace(message_id=self.new_message_id())
        if head.origin == self.port.incarnation:
            self.on_outcome(head, outcome)
        else:
            self._try_to_report(head, outcome, RETRY_SECONDS)

    def _try_to_report(self, head: Head, outcome: Outgoing, delay: float) -> None:
        """Again and again, until it is answered."""
        if self._closed or self.port.is_gone(head.origin):
            return

        def done(error: BaseException | None) -> None:
            if error is not None:
                longer = min(2 * delay, LONGEST_RETRY_SECONDS)
                self.port.call_later(delay, partial(self._try_to_report, head, outcome, longer))

        self.port.report(head, outcome, done)

    def _run(self, context: DistAutogradContext, run: Callable[[Arrival], None], arrival: Arrival) -> None:
        """For hooks and custom functions the thread is in the context."""
        thread = self.thread
        outer = thread.context
        thread.context = context
        try:
            run(arrival)
        finally:
            thread.context = outer

    # -- for those who look -------------------------------------------------------------------------------

    def max_id(self) -> int:
        """Of a context made here, torch's `_get_max_id`."""
        return (self.port.worker_id << COUNTER_BITS) | (1 << COUNTER_BITS) - 1

    def debug_info(self) -> dict[str, str]:
        with self._lock:
            contexts = list(self._contexts.values())
        passes = sum(context.in_pass for context in contexts)
        return {"num_autograd_contexts": str(len(contexts)), "num_current_backward_passes": str(passes)}


def root_gradients(roots: list[torch.Tensor]) -> list[torch.Tensor]:
    """Ones. Raises `RuntimeError`, in torch's words, for what cannot be a root."""
    if not roots:
        raise RuntimeError("No tensors provided for gradient computation.")
    for root in roots:
        if not root.requires_grad:
            raise RuntimeError("requires_grad not set on root")
        if root.numel() != 1:
            raise RuntimeError(f"{_name(root)} is not a scalar, all roots need to be scalar")
        if root.grad_fn is None:
            raise RuntimeError(f"{_name(root)} does not have a valid gradient function.")
    return [torch.ones_like(root) for root in roots]


def _tell_outcome(outcome: Outcome, what: Outgoing) -> None:
    if isinstance(what, BaseException):
        outcome.fail(what)
    else:
        outcome.give_back(what)


def _timeout_error(seconds: float, running: Pass) -> CallTimeoutError:
    text = f"RPC ran for more than set timeout ({int(seconds * 1000)} ms): the backward pass"
    unheard = running.unheard
    if unheard:
        text += (
            f". No gradients came back for {len(unheard)} messages of this worker, to those of incarnations "
            f"{sorted(set(unheard))}: all tensors that require grad and are sent have to be used for the roots"
        )
    return CallTimeoutError(text)


def _name(root: torch.Tensor) -> str:
    return f"a root of shape {tuple(root.shape)}"
