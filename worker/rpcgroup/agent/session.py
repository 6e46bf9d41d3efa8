"""One peer's requests, at the callee."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from rpcgroup.agent.forks import Forks
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.cuda.events import Events
from rpcgroup.devices import DevicePlacement
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.transport.base import Stream
from rpcgroup.transport.channel import Channel
from rpcgroup.wire.forms import Encoded
from rpcgroup.wire.frames import HEADER, pack_frame
from rpcgroup.wire.handshake import Identity
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.payloads import ON_DEVICE

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent

__all__ = ["Function", "Session"]

MAX_IN_FLIGHT: Final = 65536
"""Requests of one peer that wait or run; beyond, they stay in the kernel and the peer's writes wait."""

_RESPONSE: Final = int(MessageType.RESPONSE)
_EXCEPTION: Final = int(MessageType.EXCEPTION)
_GOODBYE: Final = int(MessageType.GOODBYE)
_pack_header = HEADER.pack
_log = logging.getLogger(__name__)


class Function:
    """A function that peers call. Shared by all sessions of an agent once it is loaded.

    Loading can take long (it imports), so the first call does it: a definition is never overtaken by its calls.
    `slow` > 0: it has run for a whole tick, so the pool runs it; each quick run there takes one off.
    """

    __slots__ = ("call", "description", "is_async", "plain", "slow")

    def __init__(self, call: Callable[..., Any] | None, description: bytes | bytearray = b"") -> None:
        self.call = call
        """None: not loaded; `description` says what to load."""
        self.description = description
        self.is_async = hasattr(call, "_wrapped_async_rpc_function")
        self.plain = call is not None and not self.is_async
        self.slow = 0


class Session:
    """Lives as long as the peer's link does, over all its connections.

    Its states: open (a connection is attached), broken (the peer may come back within the resume window),
    closed. `_state_lock` guards the change between them, and that a closed one is not watched.
    """

    context: DistAutogradContext | None = None
    """That the requests are in: see `ForwardedSession`."""
    adopt: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None = None
    """Takes the tensors of a request in that context over."""

    def __init__(self, agent: Agent, peer: Identity, channel_id: str) -> None:
        self.agent = agent
        self.peer = peer
        self.channel_id = channel_id
        self.by_value = peer.main != agent.identity.main
        self.forks = Forks(agent, peer.incarnation)
        self.channel: Channel = None  # type: ignore[assignment]  # set by the first attach
        self.functions: dict[int, Function] = {}
        self.waiting: dict[int, bool] = {}
        """Ids of calls that have not started: a cancellation takes them out."""
        self.read_time = 0.0
        self.closed = False
        self.leaving = False
        """The peer has said goodbye."""
        self._broken = True
        self._broken_at = 0.0
        self._state_lock = threading.Lock()
        # held from `hold` to `attach` or `let_go`: one handshake at a time
        self._handshake = threading.Lock()
        self._placement: DevicePlacement | None = None
        self.transfers = agent.connections.new_transfers(peer.name, peer.incarnation)
        """None in a process without devices."""
        self._borrowed: dict[int, Events] = {}
        """By requests: behind the copies of what they have brought out of memory that is the peer's."""
        self._unanswered: dict[int, None] = {}
        """Ids of the requests that wait or run. A dict, because counters lose updates between threads."""
        self._paused = False

    # -- answers ------------------------------------------------------------------------------------------

    def begin(self, id: int) -> None:
        """A request is about to be handled and will be answered."""
        self._unanswered[id] = None
        if len(self._unanswered) > MAX_IN_FLIGHT and not self._paused:
            self._paused = True
            self.agent.reactor.pause(self, True)

    def answer_value(self, id: int, value: Any, finished: Callable[[], None] | None = None) -> None:
        """Queue a result; the caller of the handler flushes. Raises `SerializationError`.

        `finished` is called first where it brings no tensors that stay on devices.
        """
        encoded = self.agent.codec.encode((value,), self.forks, self.by_value, None, self.placement)
        if finished is not None and not encoded.payloads:
            finished()
        self.answer(id, encoded)

    def answer(self, id: int, encoded: Encoded, kind: int = _RESPONSE) -> None:
        """The same, of a value that is encoded already."""
        flags, body, buffers, payloads = encoded
        if not payloads:
            self._queue(kind, flags, id, body, buffers)
            return
        assert self.transfers is not None
        borrowed = self._borrowed.pop(id, None)
        if borrowed is not None:
            borrowed.precede(payload.data.device for payload in payloads)
        outgoing = self.transfers.outgoing(payloads)
        self._put(kind | ON_DEVICE, flags, id, outgoing.table + body, buffers)
        outgoing.start(ended=partial(self._end, id))  # until then it is in flight: who leaves waits for it

    @property
    def placement(self) -> DevicePlacement | None:
        """Where the tensors of answers go; None in a process without devices."""
        accelerator = self.agent.accelerator
        if accelerator is None or self._placement is not None:
            return self._placement
        peer = self.agent.members.of_incarnation(self.peer.incarnation)
        if peer is None:  # it has joined a moment ago
            self.agent.on_unknown()
            peer = self.agent.members.of_incarnation(self.peer.incarnation)
        if peer is None:
            return DevicePlacement(self.peer.name, {}, is_answer=True)
        self._placement = accelerator.back_to(peer.record)
        return self._placement

    def borrow(self, id: int, events: Events) -> None:
        """A request has brought what is copied from the peer's memory: once answered, the peer may change that."""
        self._borrowed[id] = events.alone()

    def _is_put_off(self, id: int, answer: Callable[[], None]) -> bool:
        """Until that has been copied, where that is not known."""
        borrowed = self._borrowed.pop(id, None)
        if borrowed is None or borrowed.are_over():
            return False

        def answer_then() -> None:
            try:
                borrowed.synchronize()
            except Exception:
                pass  # the device has failed, and copies no more
            answer()
            self.channel.flush()

        self.agent.chores.submit(answer_then)
        return True

    def answer_nothing(self, id: int) -> None:
        if self._borrowed and self._is_put_off(id, partial(self.answer_nothing, id)):
            return
        channel = self.channel
        channel.out.append(_pack_header(0, _RESPONSE, 0, 0, id, 0, 0, channel.acknowledgement()))
        self._end(id)

    def answer_exception(self, id: int, described: bytes) -> None:
        self._queue(_EXCEPTION, 1, id, described, None)

    def _queue(self, kind: int, flags: int, id: int, body: bytes, buffers: list[memoryview] | None) -> None:
        if self._borrowed and self._is_put_off(id, partial(self._queue, kind, flags, id, body, buffers)):
            return
        self._put(kind, flags, id, body, buffers)
        self._end(id)

    def _put(self, kind: int, flags: int, id: int, body: bytes, buffers: list[memoryview] | None) -> None:
        channel = self.channel
        channel.queue(pack_frame(kind, flags, id, 0, 0, channel.acknowledgement(), body, buffers))

    def _end(self, id: int) -> None:
        self._unanswered.pop(id, None)
        if self._paused and len(self._unanswered) < MAX_IN_FLIGHT // 2:
            self._paused = False
            self.agent.reactor.pause(self, False)

    def say_goodbye(self) -> None:
        """Tell the peer that what it sends from now on is not run."""
        channel = self.channel
        if channel is not None:
            channel.queue(pack_frame(_GOODBYE, 0, 0, 0, 0, channel.acknowledgement()))
            channel.flush()

    def part(self) -> None:
        """The same, of a worker that ends at once: without waiting for room."""
        channel = self.channel
        if channel is not None:
            channel.queue(pack_frame(_GOODBYE, 0, 0, 0, 0, channel.acknowledgement()))
            channel.try_flush()

    @property
    def answers_arrived(self) -> bool:
        """The peer has acknowledged every answer, or is not connected."""
        channel = self.channel
        return channel is None or channel.broken or not (channel.out or channel.unacknowledged)

    @property
    def in_flight(self) -> int:
        return len(self._unanswered)

    # -- life ---------------------------------------------------------------------------------------------

    def hold(self) -> int:
        """Stop reading the old connection, if any; returns the frames received. `attach` or `let_go` follows.

        Waits for another handshake of this channel: its peer has given that one up. Raises
        `ConnectionResetError` where the session was closed meanwhile.
        """
        self._handshake.acquire()
        if self.closed:
            self._handshake.release()
            raise ConnectionResetError("the session was closed meanwhile")
        channel = self.channel
        if channel is None:
            return 0
        channel.broken = True
        channel.stream.shutdown()
        channel.read_lock.acquire()
        self.agent.reactor.unwatch(self)
        channel.stream.close()
        with self._state_lock:
            self._broken = True
            self._broken_at = time.monotonic()
        return channel.reader.received

    def let_go(self) -> None:
        """No connection has come of it: the peer may try again."""
        if self.channel is None:
            self.close()
        else:
            self.channel.read_lock.release()
            self.agent.monitor.call_later(self.agent.options.resume_window, self._expire)
        self._handshake.release()

    def attach(self, stream: Stream, received_by_peer: int) -> None:
        """Serve this connection from now on."""
        try:
            self._resume(stream, received_by_peer)
        except RemoteProtocolError as exc:
            _log.warning("%s cannot be connected to again: %s", self.peer.name, exc)
            stream.close()
            self.close()
        finally:
            self._handshake.release()
        self.channel.flush()

    def _resume(self, stream: Stream, received_by_peer: int) -> None:
        if self.channel is None:
            self.channel = self.agent.connections.new_channel(stream, self.transfers)
        else:
            try:
                self.channel.resume(stream, received_by_peer)
            finally:
                self.channel.read_lock.release()
        with self._state_lock:
            if self.closed:
                self.channel.close()
                return
            self._broken = False
            self.agent.reactor.watch(self)

    @property
    def is_broken(self) -> bool:
        return self._broken

    def broke(self, exc: BaseException) -> None:
        """The connection is gone. Called by the reactor, which has stopped watching it."""
        with self._state_lock:
            if self.closed or self._broken:
                return
            self._broken = True
            self._broken_at = time.monotonic()
        self.channel.broken = True
        self.channel.stream.close()
        if isinstance(exc, RemoteProtocolError):
            _log.warning("%s broke the protocol and is disconnected: %s", self.peer.name, exc)
            self.close()
            return
        self.agent.monitor.call_later(self.agent.options.resume_window, self._expire)
        if not self.leaving:
            self.agent.on_caller_lost(self.peer.incarnation)

    def _expire(self) -> None:
        with self._state_lock:
            if self.closed or not self._broken:
                return
            if time.monotonic() - self._broken_at < self.agent.options.resume_window * 0.9:
                return  # it has come back and broken again since this was arranged
        self.close()

    def close(self) -> None:
        """Forget this session: what has not started will not, what runs runs on and its answer is dropped."""
        with self._state_lock:
            if self.closed:
                return
            self.closed = True
        self.waiting.clear()
        self.agent.connections.forget_session(self)
        if self.transfers is not None:
            self.transfers.close()
        if self.channel is not None:
            self.agent.reactor.unwatch(self)
            self.channel.close()
