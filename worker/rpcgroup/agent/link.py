"""My requests to one peer and their answers, at the caller: one link per peer."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from rpcgroup.agent.answer_reader import AnswerReader
from rpcgroup.agent.autograd_port import as_taken, decode_answer, encode_request
from rpcgroup.agent.call import Call
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.autograd.messages import unwrap
from rpcgroup.errors import (
    CallCancelledError,
    CallTimeoutError,
    DrainedError,
    PeerUnreachableError,
    RemoteProtocolError,
    RpcGroupError,
)
from rpcgroup.transport.base import Stream
from rpcgroup.transport.channel import Channel
from rpcgroup.wire.exceptions import rebuild_exception
from rpcgroup.wire.forms import FORMAT_MASK, Encoded
from rpcgroup.wire.frames import HEADER, Body, Frame, pack_frame
from rpcgroup.wire.functions import FunctionNumbers, describe_function, require_callable
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.payloads import ON_DEVICE
from rpcgroup.wire.tensors import OnDevice

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.call_future import CallFuture
    from rpcgroup.agent.peer import Peer
    from rpcgroup.agent.transfers import Outgoing, Transfers

__all__ = ["KEYWORDS", "Link"]

HELD_CALLS: Final = 4
"""Unanswered calls up to which each is written at once; beyond, they are held back and written together."""
HELD_FRAMES: Final = 64
"""Held-back frames that are written at the latest."""
MAX_TIMEOUT_MS: Final = 0xFFFFFFFF
"""What the header can say: 49 days."""
KEYWORDS: Final = 4
"""Flag of a call's body: it holds (arguments, keyword arguments)."""

_RESPONSE: Final = int(MessageType.RESPONSE)
_EXCEPTION: Final = int(MessageType.EXCEPTION)
_AUTOGRAD_RESPONSE: Final = int(MessageType.FORWARD_AUTOGRAD_RESP)
_DEFINE: Final = int(MessageType.DEFINE_FUNCTION)
_CANCEL: Final = int(MessageType.CANCEL)
_GOODBYE: Final = int(MessageType.GOODBYE)
_TENSOR_CHUNK: Final = int(MessageType.TENSOR_CHUNK)
_TENSOR_FAILED: Final = int(MessageType.TENSOR_FAILED)
_TENSOR_RELEASE: Final = int(MessageType.TENSOR_RELEASE)
C = TypeVar("C", bound=Call)
_monotonic = time.monotonic
_pack_header = HEADER.pack
_log = logging.getLogger(__name__)


class Link:
    """Connected, broken (a repair holds the read lock), or failed for good (`failure` is set)."""

    def __init__(
        self,
        agent: Agent,
        peer: Peer,
        channel_id: str,
        channel: Channel,
        by_value: bool,
        transfers: Transfers | None = None,
    ) -> None:
        """`transfers` is None in a process without devices."""
        self.agent = agent
        self.peer = peer
        self.channel_id = channel_id
        self.channel = channel
        self.by_value = by_value
        self.transfers = transfers
        self._transfer_handlers: dict[int, Callable[[Frame], None]] = {}
        if transfers is not None:
            self._transfer_handlers = {
                _TENSOR_CHUNK: transfers.on_chunk,
                _TENSOR_FAILED: transfers.on_failed,
                _TENSOR_RELEASE: transfers.on_release,
                _RESPONSE | ON_DEVICE: self._hold_answer,
                _AUTOGRAD_RESPONSE | ON_DEVICE: self._hold_answer,
            }
        self._codec = agent.codec
        self._monitor = agent.monitor
        self.pending: dict[int, Call] = {}
        self.reader = AnswerReader(self)
        self.activity = 0
        """Id of the latest call sent or waited for; the monitor looks for a change."""
        self.prompt = False
        """Callers do nothing here: what arrives is settled at once (the monitor finds out)."""
        self.leaving = False
        """The peer has said goodbye: it answers what it has, and runs nothing new."""
        self.failure: BaseException | None = None
        self.unsettled: dict[int, CallFuture[Any]] = {}
        """Futures whose answers have been read, by id; whoever takes one out settles it."""
        self.listeners: dict[Callable[[BaseException], None], None] = {}
        """Called by the pool when this link has failed for good; see `listen`."""
        self.claimed: dict[int, object] = {}
        """Ids of futures for which a thread waits through this link."""
        self.first_unsettled = 0
        """The monitor's: the id of the first of them a tick ago."""
        self.eager = False
        """Among them are futures with callbacks."""
        self.eager_calls = 0
        """Pending calls whose future has callbacks; a wrong count costs a tick of latency, no more."""
        self._ids = itertools.count(1)
        self._numbers = FunctionNumbers()
        self._define_lock = threading.Lock()  # guards definitions: queued before their number is visible
        self._last_timeout: tuple[float, int] = (0.0, 0)
        """What the last call asked for, and that in milliseconds: most calls ask for the same."""
        self._life_lock = threading.Lock()  # guards failure: no connection is attached or watched after it

    # -- sending ------------------------------------------------------------------------------------------

    def call(
        self,
        kind: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        timeout: float,
        call: C,
        context: DistAutogradContext | None = None,
    ) -> C:
        """Send a request that names a function; raises at once what makes it impossible to send."""
        if context is not None:
            args, kwargs = as_taken(function, args, kwargs)
        try:
            number = self._numbers.get(function)
        except TypeError:  # an unhashable callable
            number = 0
        if number is None:
            number = self._define(function)
        if not number:
            return self.send(kind, 0, (function, args, kwargs or {}), KEYWORDS, timeout, call, context)
        if kwargs:
            return self.send(kind, number, (args, kwargs), KEYWORDS, timeout, call, context)
        return self.send(kind, number, args, 0, timeout, call, context)

    def send(
        self,
        kind: int,
        number: int,
        values: tuple[Any, ...],
        flags: int,
        timeout: float,
        call: C,
        context: DistAutogradContext | None = None,
    ) -> C:
        """Send a request; `timeout` in seconds, 0 = none. Returns `call`, which the answer completes.

        The tensors of a request within an autograd context stay connected to their graphs.
        Where `call` is a future nobody may be waiting for the answer: it is settled all the same, and requests
        that are held back are written within a tick.
        """
        if self.leaving:
            raise DrainedError(f"{self.peer.name} is leaving and was not called: try another worker")
        body, buffers, payloads, outgoing = b"", None, None, None
        if context is not None:
            kind, encoded, call.withdraw = encode_request(self, context, kind, values)
            form, body, buffers, payloads = encoded
            flags |= form
        elif values:
            form, body, buffers, payloads = self._codec.encode(
                values, self.peer.forks, self.by_value, None, self.peer.placement
            )
            flags |= form
        if payloads:
            kind, body, outgoing = self._with_payloads(kind, body, payloads)
        channel, pending = self.channel, self.pending
        call.link = self
        call.id = id = next(self._ids)
        last, timeout_ms = self._last_timeout
        if last != timeout:
            timeout_ms = min(max(1, int(timeout * 1000)), MAX_TIMEOUT_MS) if timeout else 0
            self._last_timeout = timeout, timeout_ms
        call.timeout_ms = timeout_ms
        call.deadline = deadline = _monotonic() + timeout if timeout else 0.0
        ack = channel.acknowledgement()
        pending[id] = call
        channel.out.append(
            pack_frame(kind, flags, id, number, timeout_ms, ack, body, buffers)
            if body
            else _pack_header(0, kind, flags, 0, id, number, timeout_ms, ack)
        )
        self.activity = id
        if self.failure is not None and pending.pop(id, None) is not None:
            raise self._unsent(call)
        monitor = self._monitor
        if monitor.cold:
            monitor.wake()
        if outgoing is not None:
            channel.flush()
            outgoing.start(partial(self._fail_sent, call))
        elif not call.is_future:
            channel.flush()
        else:
            if timeout and deadline < monitor.next_deadline:
                monitor.expect(deadline)
            if len(pending) <= HELD_CALLS or len(channel.out) >= HELD_FRAMES or buffers:
                channel.flush()
        return call

    def post(self, kind: int, encoded: Encoded) -> None:
        """Send what nobody answers: that it does not arrive is told to the `listeners`."""
        if self.leaving:
            raise DrainedError(f"{self.peer.name} is leaving and was not called: try another worker")
        form, body, buffers, payloads = encoded
        outgoing = None
        if payloads:
            kind, body, outgoing = self._with_payloads(kind, body, payloads)
        channel = self.channel
        channel.queue(pack_frame(kind, form, 0, 0, 0, channel.acknowledgement(), body, buffers))
        if self.failure is not None:
            raise self._failed()
        if self._monitor.cold:
            self._monitor.wake()
        channel.flush()
        if outgoing is not None:
            outgoing.start()

    def _with_payloads(self, kind: int, body: bytes, payloads: list[OnDevice]) -> tuple[int, bytes, Outgoing]:
        """The kind and the body of a request whose tensors follow it, and what sends them once it is queued."""
        assert self.transfers is not None
        outgoing = self.transfers.outgoing(payloads)
        return kind | ON_DEVICE, outgoing.table + body, outgoing

    def _fail_sent(self, call: Call, error: BaseException) -> None:
        """A device could not give what the call sends."""
        if self.pending.pop(call.id, None) is not None:
            self._fail_call(call, error)

    def listen(self, listener: Callable[[BaseException], None]) -> None:
        """Tell it, once, when this link has failed; at once where it has already."""
        self.listeners[listener] = None
        if not self.reader.armed:
            self.reader.arm()  # that the connection breaks is heard without any call
        if self.failure is not None:
            self._tell_listeners()

    def cancel(self, call: Call) -> bool:
        """Give up a call: its function will not start if it has not; false where the answer is here already."""
        if self.pending.pop(call.id, None) is None:
            return False
        self._send_cancel(call.id)
        self._fail_call(call, CallCancelledError(f"the call to {self.peer.name} was cancelled"))
        return True

    def expire(self, call: Call) -> None:
        if self.pending.pop(call.id, None) is not None:
            self._send_cancel(call.id)
            self._fail_call(
                call,
                CallTimeoutError(
                    f"RPC ran for more than set timeout ({call.timeout_ms} ms) on {self.peer.name}"
                ),
            )

    def _send_cancel(self, id: int) -> None:
        channel = self.channel
        channel.queue(pack_frame(_CANCEL, 0, id, 0, 0, channel.acknowledgement()))
        channel.try_flush()

    def _define(self, function: Callable[..., Any]) -> int:
        require_callable(function)
        with self._define_lock:
            known = self._numbers.get(function)
            if known:
                return known
            number = self._numbers.next_number(function)
            if number:
                try:
                    description = describe_function(function, by_value=self.by_value)
                except Exception:
                    return 0  # the general way says what is wrong, or sends it by value
                channel = self.channel
                channel.queue(pack_frame(_DEFINE, 0, 0, number, 0, channel.acknowledgement(), description))
                self._numbers.publish(function, number)
            return number

    # -- answers ------------------------------------------------------------------------------------------

    def deliver(self, frame: Frame) -> None:
        """An answer, or what else a callee says. The caller holds the read lock."""
        kind = frame[0]
        if kind == _RESPONSE or kind == _EXCEPTION or kind == _AUTOGRAD_RESPONSE:
            call = self.pending.pop(frame[2], None)
            if call is not None:
                call.complete(frame)
            else:
                self._decline(frame)
        elif kind == _GOODBYE:
            self.leaving = True
        elif kind in self._transfer_handlers:
            self._transfer_handlers[kind](frame)
        else:
            _log.warning("%s sent a message of kind %d where answers are expected", self.peer.name, kind)
        if self.leaving:
            self.channel.send_acknowledgement()  # no call of mine will carry it, and the leaver waits for it

    def _decline(self, frame: Frame) -> None:
        """The references of an answer that nobody will look at."""
        kind, flags, _, _, _, body = frame
        if kind == _AUTOGRAD_RESPONSE and body is not None:
            body = unwrap(body)
        self.peer.forks.decline(self._codec.references_in(flags, body))

    def _hold_answer(self, frame: Frame) -> None:
        """An answer with tensors for devices."""
        assert self.transfers is not None
        self.transfers.hold(frame, self.deliver, self._fail_held)

    def _fail_held(self, frame: Frame, error: BaseException) -> None:
        call = self.pending.pop(frame[2], None)
        if call is not None:
            self._fail_call(call, error)
        self._decline(frame)

    def expect_eager(self) -> None:
        """A pending call has got a callback: read its answer as soon as it is here."""
        self.eager_calls += 1
        if not self.reader.armed:
            self.reader.arm()

    def settle(self) -> None:
        """Settle the futures whose answers are here, in order; runs their callbacks."""
        self.eager = False
        # Copied at once, then claimed one by one: the first entry of a dict that shrinks is found ever more slowly.
        for id in list(self.unsettled):
            future = self.unsettled.pop(id, None)
            if future is not None:
                future.settle()

    def decode_answer(self, kind: int, flags: int, body: Body | None) -> Any:
        """The value of an answer; raises the callee's exception."""
        if kind == _EXCEPTION:
            raise rebuild_exception(body.data if body is not None else b"")
        if kind == _AUTOGRAD_RESPONSE:
            return decode_answer(self, flags, body)
        values = self._codec.decode(flags & FORMAT_MASK, body, self.peer.forks.receive_answer)
        return values[0] if values else None

    # -- failure ------------------------------------------------------------------------------------------

    def broke(self, exc: BaseException) -> None:
        """The connection is gone. The caller holds the read lock and leaves it to the repair."""
        channel = self.channel
        channel.broken = True
        self.reader.unwatch()
        channel.stream.close()
        self.agent.chores.submit(partial(self._repair, exc))

    def _repair(self, cause: BaseException) -> None:
        channel = self.channel
        try:
            if self.leaving:
                raise PeerUnreachableError(f"{self.peer.name} has left the group")
            if isinstance(cause, RemoteProtocolError):
                raise PeerUnreachableError(f"{self.peer.name} broke the protocol: {cause}")
            self._resume(*self.peer.reconnect(self, cause))
        except Exception as exc:
            known = isinstance(exc, RpcGroupError)
            self.fail(exc if known else PeerUnreachableError(f"{self.peer.name} was lost: {exc!r}"))
            channel.read_lock.release()
            return
        channel.read_lock.release()
        _log.info("the connection to %s was restored", self.peer.name)
        channel.flush()
        self.reader.promote()

    def _resume(self, stream: Stream, received_by_peer: int) -> None:
        with self._life_lock:
            try:
                if self.failure is not None:
                    raise self._failed()
                self.channel.resume(stream, received_by_peer)
            except BaseException:
                stream.close()
                raise
        self.watch()

    def watch(self) -> None:
        """Let the reactor tell of what arrives, on a new connection."""
        with self._life_lock:
            if self.failure is None:
                self.reader.watch()

    def interrupt(self) -> None:
        """Wake whoever reads or writes: they find the connection broken."""
        self.channel.stream.shutdown()

    def fail(self, error: BaseException) -> None:
        """For good: pending and later calls fail with `error`."""
        if self.transfers is not None:
            self.transfers.close()
        with self._life_lock:
            first = self.failure is None
            if first:
                self.failure = error
            self.reader.unwatch()
            self.channel.close()
        try:
            if first:
                self.peer.lost(self)
        finally:
            self._fail_pending()
            self._tell_listeners()

    def _tell_listeners(self) -> None:
        while self.listeners:
            try:
                listener, _ = self.listeners.popitem()
            except KeyError:
                break
            self.agent.pool.submit(partial(listener, self._failed()))

    def _fail_pending(self) -> None:
        while self.pending:
            try:
                _, call = self.pending.popitem()
            except KeyError:
                break
            self._fail_call(call, self._failed())

    def _fail_call(self, call: Call, error: BaseException) -> None:
        if not call.is_future:
            call.fail(error)
            return
        future = cast("CallFuture[Any]", call)
        future.error = error
        self.unsettled[call.id] = future
        future.fail(error)
        if not future.waited:
            self.agent.pool.submit(self.settle)

    def _unsent(self, call: Call) -> BaseException:
        """What to raise for a call that the failure came before."""
        if call.withdraw is not None:
            call.withdraw()
        return self._failed()

    def _failed(self) -> BaseException:
        # An instance for each call: a traceback belongs to one thread.
        assert self.failure is not None
        return type(self.failure)(*self.failure.args)
