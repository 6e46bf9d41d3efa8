"""My requests to one peer and their answers, at the caller: leader and followers, one link per peer.

A caller that waits tries to become the reader of its link; the reader completes the others' calls and, when its
own is done, promotes one of them. Nobody waiting: the reactor reads, once armed.
"""

from __future__ import annotations

import _thread
import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from rpcgroup.agent.call import Call
from rpcgroup.errors import (
    CallCancelledError,
    CallTimeoutError,
    DrainedError,
    PeerUnreachableError,
    RemoteProtocolError,
    RpcGroupError,
)
from rpcgroup.transport.base import READ_TIMEOUT, Stream
from rpcgroup.transport.channel import Channel
from rpcgroup.wire.codec import FORMAT_MASK
from rpcgroup.wire.exceptions import rebuild_exception
from rpcgroup.wire.frames import Frame, pack_frame
from rpcgroup.wire.functions import FunctionNumbers, describe_function, require_callable
from rpcgroup.wire.messages import MessageType

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.call_future import CallFuture
    from rpcgroup.agent.peer import Peer

__all__ = ["KEYWORDS", "Link"]

HELD_CALLS: Final = 4
"""Unanswered calls up to which each is written at once; beyond, they are held back and written together."""
HELD_FRAMES: Final = 64
"""Held-back frames that are written at the latest."""
MAX_TIMEOUT_MS: Final = 0xFFFFFFFF
"""What the header can say: 49 days."""
UNATTENDED_READS: Final = 8
"""Reads in a row before others get their turn."""
KEYWORDS: Final = 4
"""Flag of a call's body: it holds (arguments, keyword arguments)."""

_RESPONSE: Final = int(MessageType.RESPONSE)
_EXCEPTION: Final = int(MessageType.EXCEPTION)
_DEFINE: Final = int(MessageType.DEFINE_FUNCTION)
_CANCEL: Final = int(MessageType.CANCEL)
_GOODBYE: Final = int(MessageType.GOODBYE)
C = TypeVar("C", bound=Call)
_monotonic = time.monotonic
_log = logging.getLogger(__name__)


class Link:
    """Connected, broken (a repair holds the read lock), or failed for good (`failure` is set)."""

    def __init__(self, agent: Agent, peer: Peer, channel_id: str, channel: Channel, by_value: bool) -> None:
        self.agent = agent
        self.peer = peer
        self.channel_id = channel_id
        self.channel = channel
        self.by_value = by_value
        self._codec = agent.codec
        self._monitor = agent.monitor
        self.pending: dict[int, Call] = {}
        self.armed = False
        self.activity = 0
        """Counts what callers do here, sending and waiting; may miss some, the monitor only looks for a change."""
        self.prompt = False
        """Callers do nothing here: what arrives is settled at once (the monitor finds out)."""
        self.leaving = False
        """The peer has said goodbye: it answers what it has, and runs nothing new."""
        self.failure: BaseException | None = None
        self.unsettled: dict[int, CallFuture[Any]] = {}
        """Futures whose answers have been read, by id; whoever takes one out settles it."""
        self.claimed: dict[int, object] = {}
        """Ids of futures for which a thread waits through this link."""
        self.first_unsettled = 0
        """The monitor's: the id of the first of them a tick ago."""
        self._eager = False
        self._eager_calls = 0
        """Pending calls whose future has callbacks; a wrong count costs a tick of latency, no more."""
        self._waiters: dict[int, Call] = {}
        self._ids = itertools.count(1)
        self._numbers = FunctionNumbers()
        self._define_lock = threading.Lock()  # guards definitions: queued before their number is visible
        self._last_timeout: tuple[float, int] = (0.0, 0)
        """What the last call asked for, and that in milliseconds: most calls ask for the same."""
        self._reader = 0
        """Identity of the thread that holds the read lock, while it reads."""
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
    ) -> C:
        """Send a request that names a function; raises at once what makes it impossible to send."""
        try:
            number = self._numbers.get(function)
        except TypeError:  # an unhashable callable
            number = 0
        if number is None:
            number = self._define(function)
        if not number:
            return self.send(kind, 0, (function, args, kwargs or {}), KEYWORDS, timeout, call)
        if kwargs:
            return self.send(kind, number, (args, kwargs), KEYWORDS, timeout, call)
        return self.send(kind, number, args, 0, timeout, call)

    def send(self, kind: int, number: int, values: tuple[Any, ...], flags: int, timeout: float, call: C) -> C:
        """Send a request; `timeout` in seconds, 0 = none. Returns `call`, which the answer completes.

        Where `call` is a future nobody may be waiting for the answer: it is settled all the same, and requests
        that are held back are written within a tick.
        """
        if self.leaving:
            raise DrainedError(f"{self.peer.name} is leaving and was not called: try another worker")
        body, buffers = b"", None
        if values:
            form, body, buffers = self._codec.encode(values, self.peer.forks, self.by_value)
            flags |= form
        channel, pending = self.channel, self.pending
        id = next(self._ids)
        call.link = self
        call.id = id
        asked = self._last_timeout
        if asked[0] != timeout:
            asked = timeout, min(max(1, int(timeout * 1000)), MAX_TIMEOUT_MS) if timeout else 0
            self._last_timeout = asked
        call.timeout_ms = timeout_ms = asked[1]
        call.deadline = _monotonic() + timeout if timeout else 0.0
        frame = pack_frame(kind, flags, id, number, timeout_ms, channel.acknowledgement(), body, buffers)
        pending[id] = call
        channel.out.append(frame)
        channel.queued_since_flush += 1
        self.activity += 1
        if self.failure is not None and pending.pop(id, None) is not None:
            raise self._failed()
        monitor = self._monitor
        if monitor.cold:
            monitor.wake()
        if not call.is_future:
            channel.flush()
        else:
            if timeout and call.deadline < monitor.next_deadline:
                monitor.expect(call.deadline)
            if len(pending) <= HELD_CALLS or channel.queued_since_flush >= HELD_FRAMES or buffers:
                channel.flush()
        return call

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

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, call: Call) -> None:
        """Return when `call` is done, by its deadline at the latest."""
        channel = self.channel
        if channel.out:
            channel.flush()
        self.agent.reactor.step_aside()
        lock = channel.read_lock
        try:
            while not call.answered:
                if lock.acquire(False):
                    self._lead_alone(call, lock)
                elif self._reader == _thread.get_ident():
                    self._lead(call)  # unpickling an answer calls the same peer
                else:
                    self._follow(call, lock)
        finally:
            if self._waiters and not lock.locked():
                self._promote()

    def _lead_alone(self, call: Call, lock: _thread.LockType) -> None:
        """Lead, and let go of the read lock where it was not given to a repair."""
        kept = True
        try:
            self._reader = _thread.get_ident()
            kept = self._lead(call)
        except BaseException as exc:
            # KeyboardInterrupt: what was read may not be counted yet. Over a new connection it comes again.
            kept = False
            self._break(exc)
            raise
        finally:
            self._reader = 0
            if kept:
                lock.release()

    def _lead(self, call: Call) -> bool:
        """Read until `call` is done; false when the read lock was given to a repair."""
        channel = self.channel
        frames = channel.reader.frames
        late = False
        while not call.answered:
            if call.deadline:
                remaining = call.deadline - time.monotonic()
                if remaining < READ_TIMEOUT:
                    # One read is allowed after the deadline: the answer may have come while this thread could not run.
                    if late or not channel.stream.wait_readable(remaining):
                        self.expire(call)
                        break
                    late = remaining <= 0
            try:
                channel.receive()
                while frames:
                    self._deliver(frames.popleft())
            except BlockingIOError:
                continue
            except Exception as exc:
                self._break(exc)
                return False
            if self._eager:
                self._eager = False
                self.agent.pool.submit(self.settle)
            if channel.out:
                channel.flush()
        return True

    def _follow(self, call: Call, read_lock: _thread.LockType) -> None:
        """Sleep until done, promoted, or out of time."""
        lock = _thread.allocate_lock()
        lock.acquire()
        call.lock = lock
        self._waiters[call.id] = call
        try:
            # Published first, then looked again: whoever completes or leaves after this sees the waiter.
            if not call.answered and read_lock.locked():
                if not call.deadline:
                    lock.acquire()
                elif not lock.acquire(True, max(0.0, call.deadline - time.monotonic())):
                    self.expire(call)
        finally:
            self._waiters.pop(call.id, None)  # of whom nobody wakes any more

    def _promote(self) -> None:
        """Wake one waiter, which will try to read."""
        waiters = self._waiters
        while waiters:
            try:
                call = waiters.pop(next(iter(waiters)))
            except (KeyError, RuntimeError, StopIteration):
                continue
            if call.answered or call.lock is None:
                continue
            try:
                call.lock.release()
            except RuntimeError:
                pass  # it was completed this instant
            return

    # -- answers ------------------------------------------------------------------------------------------

    def _deliver(self, frame: Frame) -> None:
        kind = frame.kind
        if kind == _RESPONSE or kind == _EXCEPTION:
            call = self.pending.pop(frame.id, None)
            if call is not None:
                if self._waiters:
                    self._waiters.pop(frame.id, None)
                if call.is_future:
                    self._deliver_to_future(frame, cast("CallFuture[Any]", call))
                else:
                    call.complete(frame)
            else:
                self.peer.forks.decline(self._codec.references_in(frame.flags, frame.body, frame.body_start))
        elif kind == _GOODBYE:
            self.leaving = True
        else:
            _log.warning("%s sent a message of kind %d where answers are expected", self.peer.name, kind)
        if self.leaving:
            self.channel.send_acknowledgement()  # no call of mine will carry it, and the leaver waits for it

    def _deliver_to_future(self, frame: Frame, future: CallFuture[Any]) -> None:
        if future.eager:
            self._eager = True
            self._eager_calls -= 1
        elif frame.kind == _RESPONSE and not frame.flags:
            future.settle_with_nothing()
            return
        # Before it is answered: whoever sees that looks here, and whoever takes it out settles it at once.
        future.frame = frame
        self.unsettled[frame.id] = future
        future.complete(frame)

    def expect_eager(self) -> None:
        """A pending call has got a callback: read its answer as soon as it is here."""
        self._eager_calls += 1
        if not self.armed:
            self.arm()

    def settle(self) -> None:
        """Settle the futures whose answers are here, in order; runs their callbacks."""
        self._eager = False
        # Copied at once, then claimed one by one: the first entry of a dict that shrinks is found ever more slowly.
        for id in list(self.unsettled):
            future = self.unsettled.pop(id, None)
            if future is not None:
                future.settle()

    def decode_answer(self, frame: Frame) -> Any:
        """The value of an answer; raises the callee's exception."""
        if frame.kind == _EXCEPTION:
            raise rebuild_exception(frame.body)
        values = self.agent.codec.decode(
            frame.flags & FORMAT_MASK,
            frame.body,
            frame.body_start,
            frame.buffers,
            self.peer.forks.receive_answer,
        )
        return values[0] if values else None

    def arm(self) -> None:
        """Have the reactor read the next answer."""
        self.armed = True
        self.agent.reactor.arm(self.channel.stream.fileno(), self)

    def read_unattended(self) -> None:
        """The reactor's: something arrived, and nobody may be reading."""
        self.armed = False
        channel = self.channel
        lock = channel.read_lock
        if not lock.acquire(False):
            return  # a caller reads: this was its answer
        kept = True
        more = True
        self._reader = _thread.get_ident()
        try:
            frames = channel.reader.frames
            for _ in range(UNATTENDED_READS):
                channel.try_receive()
                while frames:
                    self._deliver(frames.popleft())
        except BlockingIOError:
            more = channel.reader.incomplete
        except Exception as exc:
            self._break(exc)
            kept = False
        finally:
            self._reader = 0
            if kept:
                lock.release()
        if not kept:
            return
        if channel.out:
            channel.flush()
        prompt = self._eager or self.prompt
        if self._waiters:
            self._promote()
        elif more or prompt or self._eager_calls > 0:
            self.arm()
        # Else the caller is busy sending, and will read by itself; if it does not, the monitor arms in a tick.
        if prompt:
            self.settle()

    # -- failure ------------------------------------------------------------------------------------------

    def _break(self, exc: BaseException) -> None:
        """The connection is gone. The caller holds the read lock and leaves it to the repair."""
        channel = self.channel
        channel.broken = True
        self.agent.reactor.remove_outgoing(channel.stream.fileno(), self)
        channel.stream.close()
        self.agent.pool.submit(partial(self._repair, exc))

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
        if self._waiters:
            self._promote()

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
                self.armed = True  # before: the reactor may be told at once
                self.agent.reactor.add_outgoing(self.channel.stream.fileno(), self)

    def interrupt(self) -> None:
        """Wake whoever reads or writes: they find the connection broken."""
        self.channel.stream.shutdown()

    def fail(self, error: BaseException) -> None:
        """For good: pending and later calls fail with `error`."""
        with self._life_lock:
            first = self.failure is None
            if first:
                self.failure = error
            self.agent.reactor.remove_outgoing(self.channel.stream.fileno(), self)
            self.channel.close()
        try:
            if first:
                self.peer.lost(self)
        finally:
            self._fail_pending()

    def _fail_pending(self) -> None:
        while self.pending:
            try:
                _, call = self.pending.popitem()
            except KeyError:
                break
            self._waiters.pop(call.id, None)
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

    def _failed(self) -> BaseException:
        # An instance for each call: a traceback belongs to one thread.
        assert self.failure is not None
        return type(self.failure)(*self.failure.args)
