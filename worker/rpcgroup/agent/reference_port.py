"""What the references need of the agent: the `Port` of `rpcgroup.rref`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rpcgroup.agent.call_future import CallFuture
from rpcgroup.cuda.events import Events
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.futures import Future
from rpcgroup.rref.port import CallKind, Done, WorkerInfoLike
from rpcgroup.wire.messages import MessageType
from rpcgroup.worker_info import WorkerInfo

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.peer import Peer

__all__ = ["ReferencePort"]

CONTROL_TIMEOUT: Final = 5.0
"""Seconds for one attempt of a control message; it is repeated."""


class ReferencePort:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.incarnation = agent.identity.incarnation
        self.name = agent.info.name

    @property
    def rpc_timeout(self) -> float:
        return self._agent.options.rpc_timeout

    def send(self, to: int, kind: MessageType, payload: bytes, done: Done) -> None:
        agent = self._agent
        peer = agent.members.of_incarnation(to)
        if peer is None or agent.closing:
            done(PeerUnreachableError(f"incarnation {to} is not a member"))
            if to <= agent.members.newest_incarnation and not agent.closing:
                agent.references.member_died(to)
        elif peer.existing_link() is None:
            self._agent.chores.submit(partial(self._send, peer, kind, payload, done))
        else:
            self._send(peer, kind, payload, done)

    def _send(self, peer: Peer, kind: MessageType, payload: bytes, done: Done) -> None:
        future: CallFuture[Any] = CallFuture.pending()
        try:
            peer.link().send(kind, 0, (payload,), 0, CONTROL_TIMEOUT, future)
        except BaseException as exc:
            done(exc)
            return

        def answered(future: Future[Any]) -> None:
            try:
                future.wait()
            except BaseException as exc:
                done(exc)
            else:
                done(None)

        future._when_settled(answered)  # nothing of a device comes back

    def call_later(self, delay: float, fn: Callable[[], None]) -> None:
        self._agent.monitor.call_later(delay, fn)

    def wake(self) -> None:
        self._agent.monitor.wake()

    def fetch(self, to: int, payload: bytes, timeout: float) -> Future[Any]:
        agent = self._agent
        peer = agent.members.of_incarnation(to)
        if peer is None:
            if to <= agent.members.newest_incarnation:
                agent.references.member_died(to)
            raise PeerUnreachableError(f"incarnation {to} is not a member any more")
        agent.reactor.step_aside()
        future: CallFuture[Any] = CallFuture.pending()
        seconds = agent.options.rpc_timeout if timeout == -1 else timeout
        context = agent.thread.context
        peer.link().send(MessageType.PYTHON_RREF_FETCH_CALL, 0, (payload,), 0, seconds, future, context)
        return future

    def call(
        self,
        kind: CallKind,
        to: WorkerInfoLike,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        timeout: float,
    ) -> Any:
        agent = self._agent
        start: Any = {"sync": agent.rpc_sync, "async": agent.rpc_async, "remote": agent.remote}[kind]
        return start(to.name, fn, tuple(args), dict(kwargs), timeout)

    def events_of(self, value: Any) -> Events | None:
        on_devices = self._agent.on_devices
        return on_devices.events_of(value) if on_devices is not None else None

    def backward(self, context_id: int, root: Any, retain_graph: bool) -> None:
        self._agent.autograd.backward(context_id, [root], retain_graph)

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        self._agent.reactor.step_aside()
        return event.wait(timeout)

    def worker_info(self, incarnation: int, name: str) -> WorkerInfo:
        peer = self._agent.members.of_incarnation(incarnation)
        if peer is None:
            return WorkerInfo(name, incarnation, incarnation)
        return WorkerInfo(peer.record.called, peer.record.id, incarnation)

    def worker_id(self, incarnation: int) -> int:
        peer = self._agent.members.of_incarnation(incarnation)
        return peer.record.id if peer is not None else incarnation
