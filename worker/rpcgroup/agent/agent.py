"""One worker's agent: its threads, its links to others, their sessions with it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from rpcgroup import futures
from rpcgroup.agent import profiling
from rpcgroup.agent.accelerator import Accelerator
from rpcgroup.agent.autograd_port import AutogradPort
from rpcgroup.agent.call import Call
from rpcgroup.agent.call_future import CallFuture
from rpcgroup.agent.connections import Connections
from rpcgroup.agent.doorway import Doorway
from rpcgroup.agent.invocation import Invocation
from rpcgroup.agent.link import Link
from rpcgroup.agent.members import Members, Target
from rpcgroup.agent.monitor import Monitor
from rpcgroup.agent.options import AgentOptions
from rpcgroup.agent.peer import Peer
from rpcgroup.agent.pool import Pool
from rpcgroup.agent.reactor import Reactor
from rpcgroup.agent.recording import current as current_recording
from rpcgroup.agent.recording import install as install_recording
from rpcgroup.agent.recording import recordings
from rpcgroup.agent.recording import uninstall as uninstall_recording
from rpcgroup.agent.reference_port import ReferencePort
from rpcgroup.agent.session import Session
from rpcgroup.autograd.container import Container, CurrentContext
from rpcgroup.cuda.runtime import current_runtime
from rpcgroup.errors import NotInitializedError, PeerUnreachableError
from rpcgroup.futures import Future
from rpcgroup.membership.record import MemberRecord
from rpcgroup.rref.context import RRefContext
from rpcgroup.rref.rref import RRef
from rpcgroup.transport.base import Transport
from rpcgroup.wire.codec import Codec
from rpcgroup.wire.functions import main_identity
from rpcgroup.wire.handshake import Identity
from rpcgroup.wire.messages import MessageType
from rpcgroup.worker_info import WorkerInfo

__all__ = ["UNSET_TIMEOUT", "Agent"]

UNSET_TIMEOUT: Final = -1.0
ANSWERS_SECONDS: Final = 1.0
"""For the last answers to be acknowledged, when leaving."""
WAIT_STEP: Final = 0.002
"""Seconds between two looks whether calls have ended, when leaving: nothing that happens often."""
CLOSE_SECONDS: Final = 1.0
"""For each of the agent's own threads to end."""

_PYTHON_CALL: Final = int(MessageType.PYTHON_CALL)
_REMOTE_CALL: Final = int(MessageType.PYTHON_REMOTE_CALL)
_agents: weakref.WeakSet[Agent] = weakref.WeakSet()
"""Those of this process, for its forked children to forget."""


def _forget_in_child() -> None:
    for agent in list(_agents):
        agent.forget_in_child()
    _agents.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class Agent:
    """Listens from the start, serves from `start` on, ends with `close`. Every public method is thread-safe.

    It learns of the group by `add_member` and `remove_member`, and tells by `on_unreachable(name, incarnation)`
    whom it cannot reach any more, by `on_refused(name, incarnation)` where nobody listens any more.
    """

    def __init__(
        self,
        *,
        name: str,
        group: str,
        secret: bytes,
        transport: Transport,
        host: str,
        port: int = 0,
        options: AgentOptions | None = None,
    ) -> None:
        self.name = name
        self.secret = secret
        self.transport = transport
        self.options = options or AgentOptions()
        self.identity = Identity(group, name, 0, main_identity())
        self.info = WorkerInfo(name, -1)
        self.where = str(self.info)
        self.closing = False
        self.refuses_calls = False
        """Leaving: calls that arrive are answered with `DrainedError`."""
        self.on_unreachable: Callable[[str, int], None] = lambda name, incarnation: None
        self.on_reachable: Callable[[str, int], None] = lambda name, incarnation: None
        self.on_caller_lost: Callable[[int], None] = lambda incarnation: None
        """The connection of one that calls here broke, without a goodbye."""
        self.on_goodbye: Callable[[int], None] = lambda incarnation: None
        """One that was connected has said that it leaves, and goes. It must not block."""
        self.on_unknown: Callable[[], None] = lambda: None
        """Before a name counts as unknown: there may be news of it."""
        self.on_refused: Callable[[str, int], None] = lambda name, incarnation: None
        self.monitor = Monitor(self, name)
        self.pool = Pool(f"pool-{name}", self.monitor.wake)
        """Runs the program's functions and callbacks."""
        self.chores = Pool(f"chores-{name}", self.monitor.wake)
        """Runs what is the agent's own and may block: it must not stand behind functions that do."""
        self.accelerator = self._find_accelerator()
        self.on_devices: Accelerator | None = None
        """The same, where calls use devices."""
        self.codec = Codec(RRef)
        if self.accelerator is not None:
            tensor_type = self.accelerator.runtime.tensor_type
            self.codec = Codec(RRef, tensor_type=tensor_type, put=self.accelerator.put)
        self.invocation = Invocation(self)
        self.reactor = Reactor(name, self.invocation.handlers, self.invocation.refuse, self.monitor.wake)
        self.references: RRefContext = None  # type: ignore[assignment]  # made by start: it needs the incarnation
        self.autograd: Container = None  # type: ignore[assignment]  # the same
        self.thread = CurrentContext()
        self._doorway = Doorway(self, transport.listen(host, port), name)
        self.members = Members(group)
        self.connections = Connections(self)
        self._ready = self.connections.ready
        self._pid = os.getpid()
        self.record = MemberRecord(name=name)
        self._started = False
        self._closed = False
        self._close_lock = threading.Lock()  # guards _closed

    @property
    def address(self) -> str:
        return self._doorway.address

    def start(self, record: MemberRecord) -> None:
        """Be the member of that record, and serve."""
        self.become(record)
        self.serve()

    def become(self, record: MemberRecord) -> None:
        """Be the member of that record: its references and contexts are there, and nobody is answered yet."""
        self.identity = replace(self.identity, incarnation=record.incarnation)
        self.info = WorkerInfo(record.called, record.id, record.incarnation)
        self.where = str(self.info)
        self.record = record
        self._choose_devices()
        self.references = RRefContext(ReferencePort(self))
        self.autograd = Container(AutogradPort(self), self.thread)

    def serve(self) -> None:
        """Answer the others."""
        self._started = True
        install_recording()
        _agents.add(self)
        futures.before_blocking.append(self.reactor.step_aside)
        self.monitor.start()
        self.reactor.start()
        self._doorway.start()

    # -- calls --------------------------------------------------------------------------------------------

    def rpc_sync(
        self,
        to: Target,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float = UNSET_TIMEOUT,
    ) -> Any:
        """Call and wait; raises what the function raised, or why it could not be called."""
        if recordings and (recording := current_recording()) is not None:
            return profiling.rpc_sync(recording, self, to, function, args, kwargs, timeout)
        link = self._ready.get(to) or self._link(to)
        if timeout == UNSET_TIMEOUT:
            timeout = self.options.rpc_timeout
        return link.call(_PYTHON_CALL, function, args, kwargs, timeout, Call(), self.thread.context).wait()

    def rpc_async(
        self,
        to: Target,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float = UNSET_TIMEOUT,
    ) -> Future[Any]:
        """Call; the future's `wait` gives what `rpc_sync` would."""
        if recordings and (recording := current_recording()) is not None:
            return profiling.rpc_async(recording, self, to, function, args, kwargs, timeout)
        link = self._ready.get(to) or self._link(to)
        if timeout == UNSET_TIMEOUT:
            timeout = self.options.rpc_timeout
        return link.call(
            _PYTHON_CALL, function, args, kwargs, timeout, CallFuture.pending(), self.thread.context
        )

    def remote(
        self,
        to: Target,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        timeout: float = UNSET_TIMEOUT,
    ) -> RRef[Any]:
        """Call, leave the result with the callee, and return a reference to it at once.

        A `timeout` that is given bounds the function; the default one bounds the creation of the reference only.
        """
        if recordings and (recording := current_recording()) is not None:
            return profiling.remote(recording, self, to, function, args, kwargs, timeout)
        link = self._ready.get(to) or self._link(to)
        bounds_function = timeout != UNSET_TIMEOUT
        if not bounds_function:
            timeout = self.options.rpc_timeout
        references = self.references
        rref, fork = references.begin_remote(link.peer.incarnation, link.peer.record.called)
        future: CallFuture[Any] = CallFuture.pending()
        rref._future = future
        try:
            args = (fork.to_wire(), bounds_function, *args)
            link.call(_REMOTE_CALL, function, args, kwargs, timeout, future, self.thread.context)
        except BaseException as exc:
            references.remote_done(fork, exc)
            del rref  # the failure that is kept has a traceback, which has this frame
            raise

        def created(done: Future[Any]) -> None:
            try:
                done.wait()
            except BaseException as exc:
                references.remote_done(fork, exc)
            else:
                references.remote_done(fork, None)

        future._when_settled(created)  # nothing of a device comes back
        return rref

    def peer(self, to: Target) -> Peer:
        """The member that a user means; raises why there is none: see `Members.missing`."""
        if self.closing or not self._started:
            raise NotInitializedError(
                "RPC has not been initialized, or has been shut down: call init_rpc first"
            )
        if os.getpid() != self._pid:
            raise NotInitializedError("this process was forked from a worker and has no RPC of its own")
        peer = self.members.get(to)
        if peer is None:
            self.on_unknown()
            peer = self.members.get(to)
        if peer is None:
            raise self.members.missing(to)
        return peer

    def _link(self, to: Target) -> Link:
        self.reactor.step_aside()
        link = self.peer(to).link()
        self.connections.make_ready(to, link)
        return link

    # -- the group ----------------------------------------------------------------------------------------

    def add_member(self, record: MemberRecord) -> None:
        """It can be called from now on; of one name, the latest incarnation counts. Does not block."""
        known = self.members.get(record)
        if known is not None and known.incarnation == record.incarnation:
            known.record = record
            return
        self.members.add(Peer(self, record))
        if known is not None:
            self.remove_member(known.record, f"was replaced by its incarnation {record.incarnation}")
        self._choose_devices()

    def remove_member(self, record: MemberRecord, why: str, in_order: bool = False) -> None:
        """It left (`in_order`) or died: from here on it is called no more.

        Does not block: a thread that may sees to it that pending calls fail, and that what it held is reclaimed.
        """
        peer = self.members.remove(record, why, in_order)
        if peer is None:
            return
        peer.gone = why
        self.connections.unready(record)
        self._choose_devices()
        if self.accelerator is not None:
            self.accelerator.forget(record.incarnation)
            if self.members.get(record) is None:
                self.accelerator.traffic.forget(record.name)
        # Those of now: whoever comes back begins new ones.
        self.chores.submit(partial(self._part_with, peer, self.connections.sessions_of(record.incarnation)))

    def _part_with(self, peer: Peer, sessions: list[Session]) -> None:
        """This ends calls, runs their callbacks, and sends to others."""
        peer.leave()
        for session in sessions:
            session.close()
        if self.references is not None and not self._closed:
            self.references.member_died(peer.incarnation)
            self.autograd.member_died(peer.incarnation)

    def _find_accelerator(self) -> Accelerator | None:
        runtime = current_runtime()
        if runtime is None:
            return None
        return Accelerator(runtime, self.options.stream_priority, self.monitor.call_later, self.chores.submit)

    def _choose_devices(self) -> None:
        """Of the members' maps, after each change of theirs."""
        accelerator = self.accelerator
        if accelerator is None:
            return
        peers = self.members.all()
        accelerator.know(self.record, [peer.record for peer in peers])
        for peer in peers:
            peer.placement = placement = accelerator.to(peer.record)
            peer.answers_reach_devices = placement.leaves_for_cpu
        self.on_devices = accelerator if accelerator.devices else None

    def probe(self, incarnation: int) -> None:
        """Find out whether a member can be reached; tells `on_reachable` or `on_unreachable`. Blocks."""
        peer = self.members.of_incarnation(incarnation)
        if peer is None:
            return
        try:
            peer.link()
        except PeerUnreachableError:
            self.on_unreachable(peer.name, peer.incarnation)
        else:
            self.on_reachable(peer.name, peer.incarnation)

    # -- what the monitor asks for ------------------------------------------------------------------------

    def reap(self) -> None:
        """Let the references that the program has dropped go; off the monitor, since it sends."""
        if self.references is not None and self.references.has_let_go:
            # Only then: always submitting would keep the monitor awake for ever.
            self.chores.submit(self.references.reap)

    # -- the end ------------------------------------------------------------------------------------------

    def stats(self) -> Mapping[str, float]:
        """Those of tensors on devices, in bytes by direction and path, are there in a process with devices only."""
        traffic = self.accelerator.traffic.total if self.accelerator is not None else {}
        return {
            "calls": self.invocation.served,
            "in_flight": self.connections.in_flight,
            "pending": sum(len(link.pending) for link in self.connections.links),
            "links": len(self.connections.links),
            "sessions": len(self.connections.sessions()),
            "takeovers": self.reactor.takeovers,
            "threads": self.pool.size + self.chores.size,
            **{f"device_bytes_{name}": size for name, size in traffic.items()},
        }

    def finish_calls(self, timeout: float) -> bool:
        """Wait for the answers to my calls; false after `timeout` seconds."""
        return self.wait_until(lambda: not self.connections.has_pending_calls(), timeout)

    def finish_serving(self, timeout: float) -> bool:
        """Refuse new calls, end those that run, and see that their answers arrive; false after `timeout` seconds."""
        self.refuses_calls = True
        deadline = time.monotonic() + timeout
        ended = self.wait_until(lambda: not self.connections.in_flight, timeout)
        self.connections.say_goodbye()
        answered = self.wait_until(
            lambda: self.connections.answers_arrived,
            min(ANSWERS_SECONDS, max(0.0, deadline - time.monotonic())),
        )
        return ended and answered

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        self.reactor.step_aside()
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(WAIT_STEP)
        return True

    def forget_in_child(self) -> None:
        """In a forked child: give back what was inherited, so that the parent's death is seen; call nobody."""
        self._started = False
        self.members.clear()
        self.connections.forget_in_child()
        self._doorway.forget()

    def close_links(self) -> None:
        """Call nobody any more: pending calls fail."""
        self.closing = True
        self.connections.close_links()

    def close(self) -> None:
        """End at once: pending calls fail, running functions are left to end. Idempotent."""
        with self._close_lock:
            if self._closed or os.getpid() != self._pid:
                return  # in a forked child the reactor's pipe is the parent's too: closing would wake that for ever
            self._closed = True
        self.close_links()
        self._doorway.close(CLOSE_SECONDS)
        self.connections.close_sessions()
        if self.references is not None:
            self.references.close()
            self.autograd.close()
        self.reactor.close(CLOSE_SECONDS)
        self.monitor.close(CLOSE_SECONDS)
        self.pool.close(CLOSE_SECONDS)
        self.chores.close(CLOSE_SECONDS)
        if self._started:
            uninstall_recording()
            futures.before_blocking.remove(self.reactor.step_aside)
