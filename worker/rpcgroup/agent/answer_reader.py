"""Who reads the answers of a link: a leader among those who wait, else the reactor (ADR 0008).

A caller that waits tries to become the leader; the leader completes the others' calls and, when its own is done,
promotes one of them. Nobody waiting: the reactor reads, once armed.
"""

from __future__ import annotations

import _thread
import time
from typing import TYPE_CHECKING, Final

from rpcgroup.agent.call import Call
from rpcgroup.transport.base import READ_TIMEOUT

if TYPE_CHECKING:
    from rpcgroup.agent.link import Link

__all__ = ["AnswerReader"]

UNATTENDED_READS: Final = 8
"""Reads in a row before others get their turn."""


class AnswerReader:
    """Leads and follows for one link; whoever reads holds the channel's `read_lock`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.armed = False
        """The reactor will tell of what arrives."""
        self._waiters: dict[int, Call] = {}
        """Calls whose threads sleep until they are answered or promoted, by id."""
        self._thread = 0
        """Identity of the thread that holds the read lock, while it reads."""

    # -- by those who wait --------------------------------------------------------------------------------

    def wait(self, call: Call) -> None:
        """Return when `call` is done, by its deadline at the latest."""
        link = self._link
        channel = link.channel
        if channel.out:
            channel.flush()
        link.agent.reactor.step_aside()
        lock = channel.read_lock
        try:
            while not call.answered:
                if lock.acquire(False):
                    self._lead_alone(call, lock)
                elif self._thread == _thread.get_ident():
                    self._lead(call)  # unpickling an answer calls the same peer
                else:
                    self._follow(call, lock)
        finally:
            if self._waiters and not lock.locked():
                self.promote()

    def _lead_alone(self, call: Call, lock: _thread.LockType) -> None:
        """Lead, and let go of the read lock where it was not given to a repair."""
        kept = True
        try:
            self._thread = _thread.get_ident()
            kept = self._lead(call)
        except BaseException as exc:
            # KeyboardInterrupt: what was read may not be counted yet. Over a new connection it comes again.
            kept = False
            self._link.broke(exc)
            raise
        finally:
            self._thread = 0
            if kept:
                lock.release()

    def _lead(self, call: Call) -> bool:
        """Read until `call` is done; false when the read lock was given to a repair."""
        link = self._link
        channel, deliver = link.channel, link.deliver
        frames = channel.reader.frames
        late = False
        while not call.answered:
            receive = channel.receive
            if call.deadline:
                remaining = call.deadline - time.monotonic()
                if remaining < READ_TIMEOUT:
                    # One read is allowed after the deadline: the answer may have come while this thread could not run.
                    if late or not channel.stream.wait_readable(remaining):
                        link.expire(call)
                        break
                    late = remaining <= 0
                    receive = channel.try_receive
            try:
                receive()
                while frames:
                    deliver(frames.popleft())
            except BlockingIOError:
                continue
            except Exception as exc:
                link.broke(exc)
                return False
            if link.eager:
                link.eager = False
                link.agent.pool.submit(link.settle)
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
                    self._link.expire(call)
        finally:
            self._waiters.pop(call.id, None)  # of whom nobody wakes any more

    def promote(self) -> None:
        """Wake one waiter, if there is one: it will try to read."""
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

    # -- by the reactor -----------------------------------------------------------------------------------

    def arm(self) -> None:
        """Have the reactor read the next answer."""
        self.armed = True
        self._link.agent.reactor.arm(self._link.channel.stream.fileno(), self)

    def watch(self) -> None:
        """Armed, on a new connection."""
        self.armed = True  # before: the reactor may be told at once
        self._link.agent.reactor.add_outgoing(self._link.channel.stream.fileno(), self)

    def unwatch(self) -> None:
        """Before the stream is closed."""
        self._link.agent.reactor.remove_outgoing(self._link.channel.stream.fileno(), self)

    def read_unattended(self) -> None:
        """The reactor's: something arrived, and nobody may be reading."""
        self.armed = False
        link = self._link
        lock = link.channel.read_lock
        if not lock.acquire(False):
            return  # a caller reads: this was its answer
        more: bool | None = None
        self._thread = _thread.get_ident()
        try:
            more = self._read_what_is_there()
        except Exception as exc:
            link.broke(exc)
        finally:
            self._thread = 0
            if more is not None:
                lock.release()
        if more is None:
            return
        if link.channel.out:
            link.channel.flush()
        prompt = link.eager or link.prompt
        if self._waiters:
            self.promote()
        elif more or prompt or link.eager_calls > 0:
            self.arm()
        # Else the caller is busy sending, and will read by itself; if it does not, the monitor arms in a tick.
        if prompt:
            link.settle()

    def _read_what_is_there(self) -> bool:
        """Whether there may be more."""
        channel, deliver = self._link.channel, self._link.deliver
        frames = channel.reader.frames
        try:
            for _ in range(UNATTENDED_READS):
                channel.try_receive()
                while frames:
                    deliver(frames.popleft())
        except BlockingIOError:
            return channel.reader.incomplete
        return True
