"""Distributed autograd over the agent: its `Port`, and calls whose tensors stay connected to their graphs.

A call within an autograd context is an ordinary one in an envelope. At the callee `ForwardedSession` stands for the
session, for this one request: what it decodes is attached to recv functions, what it answers to a send function.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from rpcgroup.agent.call_future import CallFuture
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.autograd.messages import Head, head_of, unwrap
from rpcgroup.autograd.port import Done, Lost, Outgoing
from rpcgroup.autograd.streams import ContextStreams
from rpcgroup.cuda.events import Events
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.futures import Future
from rpcgroup.wire.exceptions import describe_exception
from rpcgroup.wire.forms import FORMAT_MASK, Encoded
from rpcgroup.wire.frames import Body
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.scripts import find_operator, is_scripted

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.link import Link
    from rpcgroup.agent.peer import Peer
    from rpcgroup.agent.session import Session

__all__ = ["AutogradPort", "ForwardedSession", "as_taken", "decode_answer", "encode_request"]

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for one attempt; it is repeated."""
NEWS_PAUSE: Final = 0.05
"""Seconds between two looks whether there is news of a worker that others know already."""
_FORWARD: Final = int(MessageType.FORWARD_AUTOGRAD_REQ)
_BACKWARD: Final = int(MessageType.BACKWARD_AUTOGRAD_REQ)
_OUTCOME: Final = int(MessageType.BACKWARD_AUTOGRAD_RESP)
_CLEANUP: Final = int(MessageType.CLEANUP_AUTOGRAD_CONTEXT_REQ)
_QUERY: Final = int(MessageType.AUTOGRAD_CONTEXT_QUERY)


class AutogradPort:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.incarnation = agent.identity.incarnation
        self.worker_id = agent.info.id
        self._lock = threading.Lock()  # guards _watches
        self._watches: dict[Lost, Link | None] = {}
        """The links whose failure somebody wants to hear of; None where the gradients are still to be sent."""

    @property
    def rpc_timeout(self) -> float:
        return self._agent.options.rpc_timeout

    def new_streams(self) -> ContextStreams | None:
        on_devices = self._agent.on_devices
        if on_devices is None:
            return None
        return ContextStreams(on_devices.runtime, on_devices.devices, on_devices.priority)

    def events_of(self, tensors: Sequence[torch.Tensor | None]) -> Events | None:
        on_devices = self._agent.on_devices
        return on_devices.events_of(tensors) if on_devices is not None else None

    def propagate(
        self, to: int, head: Head, grads: Sequence[torch.Tensor | None], lost: Lost, of_answer: bool
    ) -> None:
        send: Callable[[Peer], None] = partial(self._send_gradients, head, tuple(grads), lost, of_answer)
        on_devices = self._agent.on_devices
        if on_devices is not None:  # it may be another thread that sends
            send = on_devices.resumed(grads, send)
        with self._lock:
            self._watches.setdefault(lost, None)
        self._reach(to, send, lost)

    def _send_gradients(
        self, head: Head, grads: tuple[Any, ...], lost: Lost, of_answer: bool, peer: Peer
    ) -> None:
        if lost not in self._watches:
            return  # the pass is over
        link, agent = peer.link(), self._agent
        placement = peer.placement
        if agent.accelerator is not None and not of_answer:
            placement = agent.accelerator.back_to(peer.record)
        link.post(_BACKWARD, wrap(head, agent.codec.encode(grads, placement=placement)))
        with self._lock:
            is_new = self._watches.get(lost, link) is not link
            if is_new:
                self._watches[lost] = link
        if is_new:
            link.listen(lost)
            if lost not in self._watches:
                link.listeners.pop(lost, None)  # forgotten meanwhile

    def forget(self, lost: Lost) -> None:
        with self._lock:
            link = self._watches.pop(lost, None)
        if link is not None:
            link.listeners.pop(lost, None)

    def report(self, head: Head, outcome: Outgoing, done: Done) -> None:
        what = (
            describe_exception(outcome, self._agent.where) if isinstance(outcome, BaseException) else outcome
        )
        self._tell(head.origin, _OUTCOME, (head.pack(), what), done)

    def cleanup(self, to: int, context_id: int, done: Done) -> None:
        self._tell(to, _CLEANUP, (Head(context_id).pack(),), done)

    def _tell(self, to: int, kind: int, values: tuple[Any, ...], done: Done) -> None:
        """What is answered with nothing."""

        def send(peer: Peer) -> None:
            future = peer.link().send(kind, 0, values, 0, ANSWER_TIMEOUT, CallFuture.pending())
            future.add_done_callback(answered)

        def answered(future: Future[Any]) -> None:
            try:
                future.wait()
            except BaseException as exc:
                done(exc)
            else:
                done(None)

        self._reach(to, send, done)

    def ask(self, to: int, context_id: int, answer: Callable[[bool | None], None]) -> None:
        def send(peer: Peer) -> None:
            head = Head(context_id).pack()
            future = peer.link().send(_QUERY, 0, (head,), 0, ANSWER_TIMEOUT, CallFuture.pending())
            future.add_done_callback(answered)

        def answered(future: Future[Any]) -> None:
            try:
                answer(bool(future.wait()))
            except BaseException:
                answer(None)

        self._reach(to, send, lambda error: answer(None))

    def call_later(self, delay: float, fn: Callable[[], None]) -> None:
        self._agent.monitor.call_later(delay, fn)

    def is_gone(self, incarnation: int) -> bool:
        agent = self._agent
        known = incarnation == self.incarnation or agent.members.of_incarnation(incarnation) is not None
        return not known and incarnation <= agent.members.newest_incarnation

    def others(self) -> list[int]:
        agent = self._agent
        return [peer.incarnation for peer in agent.members.all() if peer.name != agent.name]

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        self._agent.reactor.step_aside()
        return event.wait(timeout)

    def step_aside(self) -> None:
        self._agent.reactor.step_aside()

    def _reach(self, to: int, send: Callable[[Peer], None], failed: Lost) -> None:
        """`send` in this thread, or where it has to connect first in another; `failed` with what it raises."""
        agent = self._agent
        peer = agent.members.of_incarnation(to)
        if peer is None and to > agent.members.newest_incarnation and not agent.closing:
            deadline = time.monotonic() + agent.options.connect_timeout
            agent.chores.submit(partial(self._reach_new, to, send, failed, deadline))
        elif peer is None or agent.closing:
            failed(PeerUnreachableError(f"the worker of incarnation {to} has died or left"))
        elif peer.existing_link() is None:
            agent.chores.submit(partial(_try, send, peer, failed))
        else:
            _try(send, peer, failed)

    def _reach_new(self, to: int, send: Callable[[Peer], None], failed: Lost, deadline: float) -> None:
        """Others know it already: the news of it is on its way."""
        agent = self._agent
        agent.on_unknown()
        peer = agent.members.of_incarnation(to)
        if peer is not None:
            _try(send, peer, failed)
        elif agent.closing or time.monotonic() >= deadline:
            failed(PeerUnreachableError(f"the worker of incarnation {to} is not known here"))
        else:
            self.call_later(NEWS_PAUSE, partial(self._reach_new, to, send, failed, deadline))


def _try(send: Callable[[Peer], None], peer: Peer, failed: Lost) -> None:
    try:
        send(peer)
    except Exception as exc:
        failed(exc)


def wrap(head: Head, encoded: Encoded) -> Encoded:
    return encoded._replace(body=head.pack() + encoded.body)


def as_taken(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """The arguments of a call within a context: to an operator or a scripted function a parameter is the tensor that
    it is, and stays connected to its graph.

    As an object, in the arguments of any other function, it arrives as a parameter of its own: as with torch.
    """
    if not is_scripted(function) and find_operator(function) is None:
        return args, kwargs
    named = {name: _as_tensor(arg) for name, arg in kwargs.items()} if kwargs else kwargs
    return tuple([_as_tensor(arg) for arg in args]), named


def _as_tensor(value: Any) -> Any:
    if isinstance(value, torch.nn.Parameter) and value.layout is torch.strided:
        return value.view_as(value)
    if type(value) in (list, tuple):
        return type(value)(map(_as_tensor, value))
    return value


def encode_request(
    link: Link, context: DistAutogradContext, kind: int, values: tuple[Any, ...]
) -> tuple[int, Encoded, Callable[[], None] | None]:
    """What to send in place of a request of that kind, so that its tensors stay connected.

    The third part takes back what has been noted of it, where the call fails.
    """
    agent, peer = link.agent, link.peer
    sent: list[torch.Tensor] = []
    encoded = agent.codec.encode(values, peer.forks, link.by_value, sent, peer.placement)
    message_id = agent.autograd.new_message_id()
    if not context.add_send(message_id, peer.incarnation, peer.record.id, sent):
        return kind, encoded, None
    withdraw = partial(context.drop_send, message_id) if sent else None
    return _FORWARD, wrap(Head(context.id, message_id, kind, 0, context.creator), encoded), withdraw


def decode_answer(link: Link, flags: int, body: Body | None) -> Any:
    """The value of a FORWARD_AUTOGRAD_RESP."""
    agent, head = link.agent, head_of(body)
    assert body is not None
    incarnation = link.peer.incarnation
    context = agent.autograd.introduce(head.context_id, head.origin, incarnation)
    adopt = None if context is None else partial(context.add_recv, head.message_id, incarnation, True)
    return agent.codec.decode(flags & FORMAT_MASK, unwrap(body), link.peer.forks.receive_answer, adopt)[0]


class ForwardedSession:
    """A session, as the handlers of requests use it, for one request within a context."""

    def __init__(self, session: Session, context: DistAutogradContext, head: Head) -> None:
        self.context = context
        self.agent = session.agent
        self.peer = session.peer
        self.channel = session.channel
        self.forks = session.forks
        self.functions = session.functions
        self.waiting = session.waiting
        self.by_value = session.by_value
        self.read_time = session.read_time
        self.begin = session.begin
        self.answer_nothing = session.answer_nothing
        self.answer_exception = session.answer_exception
        self._session = session
        self._message_id = head.message_id

    def adopt(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return self.context.add_recv(self._message_id, self.peer.incarnation, False, tensors)

    def answer_value(self, id: int, value: Any, finished: Callable[[], None] | None = None) -> None:
        sent: list[torch.Tensor] = []
        agent, peer = self.agent, self.peer
        encoded = agent.codec.encode((value,), self.forks, self.by_value, sent, self._session.placement)
        if finished is not None and not encoded.payloads:
            finished()
        if sent:
            message_id = agent.autograd.new_message_id()
            if self.context.add_send(message_id, peer.incarnation, None, sent):
                head = Head(self.context.id, message_id, 0, 0, self.context.creator)
                self._session.answer(id, wrap(head, encoded), MessageType.FORWARD_AUTOGRAD_RESP)
                return
        self._session.answer(id, encoded)
