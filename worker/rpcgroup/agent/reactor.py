"""The reactor: one leading thread reads requests and runs their functions where it read them.

The leadership is a token. Whoever leads gives it away before it blocks in a call of its own; the monitor takes
it away from a run that lasts a whole tick. The old leader notices when its run ends, and joins the standbys.
A term ends only while its leader is inside a run, and once: so what a leader has read, it or its successor runs.
"""

from __future__ import annotations

import _thread
import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from rpcgroup.agent.pool import join_all
from rpcgroup.transport.channel import Channel
from rpcgroup.wire.frames import Frame

__all__ = ["Handler", "Handlers", "Incoming", "Leadership", "Outgoing", "Reactor"]

WRITE_AFTER: Final = 200e-6
"""Seconds of running functions after which the answers so far are written."""
LARGE_READS: Final = 32
"""Reads into one large buffer before the other channels get their turn: an epoll between any two costs as much."""
WRITE_FRAMES: Final = 64
STANDBY_SECONDS: Final = 5.0
FAILURE_PAUSE: Final = 0.01
"""Seconds before a leader that failed goes on: a failure that comes again at once must not fill the log."""

_READ: Final = select.EPOLLIN
_READ_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
_log = logging.getLogger(__name__)


class Incoming(Protocol):
    """A channel on which a peer sends requests."""

    channel: Channel
    read_time: float

    def broke(self, exc: BaseException) -> None: ...


class Outgoing(Protocol):
    """A link whose answers nobody is waiting for right now."""

    armed: bool

    def read_unattended(self) -> None: ...


Handler = Callable[[Any, Frame], None]
Handlers = Mapping[int, Handler]


class Leadership:
    """One term of one leader: outside -> inside (running what may block) -> outside ..., or -> ended while inside.

    `runs` counts the runs twice and is odd while inside.
    """

    __slots__ = ("_outside", "frame", "incoming", "runs")

    def __init__(self, left_behind: Incoming | None) -> None:
        self.runs = 0
        self.incoming = left_behind
        self.frame: Frame | None = None
        # Free only while inside. Costs 0.1 us a batch; without it a term can be ended as its leader reads on.
        self._outside = _thread.allocate_lock()
        self._outside.acquire()

    def enter(self) -> None:
        """The leader's, before its first run."""
        self.runs += 1
        self._outside.release()

    def leave(self) -> bool:
        """The leader's, after its last run; false where its term was ended."""
        self.runs += 1
        return self._outside.acquire(False)

    def end(self) -> bool:
        """Anybody's; false where the leader is outside, or its term was ended already."""
        return self._outside.acquire(False)


class _Standby:
    __slots__ = ("lock", "token")

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self.lock.acquire()
        self.token: Leadership | None = None


class Reactor:
    """Owns the epoll descriptor and the leading threads; `close` joins them."""

    def __init__(
        self, name: str, handlers: Handlers, refuse: Handler, wake_monitor: Callable[[], None]
    ) -> None:
        """`handlers` by message kind; `refuse` takes what has none. None of them may raise."""
        self._name = name
        self._handlers = handlers
        self._refuse = refuse
        self._wake_monitor = wake_monitor
        self._epoll = select.epoll()
        self._incoming: dict[int, Incoming] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._standbys: deque[_Standby] = deque()
        self._table_lock = threading.Lock()  # guards _incoming, _outgoing, what is registered of them, _epoll
        self._lock = threading.Lock()  # guards _threads, _closed
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._starved = False
        """The system gave no thread, and the log says so."""
        self._wake_read, self._wake_write = -1, -1
        self._leader = 0
        """Identity of the leading thread; 0 between two terms."""
        self.token = Leadership(None)
        self.takeovers = 0

    def start(self) -> None:
        import os

        self._wake_read, self._wake_write = os.pipe()
        self._epoll.register(self._wake_read, _READ)
        first = self._new_standby()
        if first is None:
            raise RuntimeError("the system gives no thread to serve calls with")
        self._begin_term(first)

    # -- what is watched ----------------------------------------------------------------------------------

    def watch(self, incoming: Incoming) -> None:
        """Read requests from this channel from now on."""
        with self._table_lock:
            self._register(incoming.channel.stream.fileno(), _READ, self._incoming, incoming)

    def unwatch(self, incoming: Incoming) -> None:
        """Before its stream is closed: the number of the descriptor will be given to another."""
        self._forget(incoming.channel.stream.fileno(), self._incoming, incoming)

    def pause(self, incoming: Incoming, paused: bool) -> None:
        """Leave the peer's requests in the kernel, or read them again."""
        fd = incoming.channel.stream.fileno()
        with self._table_lock:
            if self._incoming.get(fd) is incoming:
                self._epoll.modify(fd, 0 if paused else _READ)

    def add_outgoing(self, fd: int, outgoing: Outgoing) -> None:
        with self._table_lock:
            self._register(fd, _READ_ONCE, self._outgoing, outgoing)

    def remove_outgoing(self, fd: int, outgoing: Outgoing) -> None:
        self._forget(fd, self._outgoing, outgoing)

    def arm(self, fd: int, outgoing: Outgoing) -> None:
        """Tell `read_unattended` once when there is something to read."""
        with self._table_lock:
            # The number may be another's by now, who would be left disarmed after one event.
            if self._outgoing.get(fd) is outgoing:
                self._epoll.modify(fd, _READ_ONCE)

    def _register(self, fd: int, events: int, table: dict[int, Any], watched: Incoming | Outgoing) -> None:
        table[fd] = watched  # first: the leader looks here without the lock, and a one-shot event comes once
        try:
            self._epoll.register(fd, events)
        except (OSError, ValueError):
            del table[fd]  # the connection broke, or this reactor was closed, meanwhile

    def _forget(self, fd: int, table: dict[int, Any], watched: Incoming | Outgoing) -> None:
        with self._table_lock:
            if table.get(fd) is watched:
                del table[fd]
                if not self._epoll.closed:
                    self._epoll.unregister(fd)

    # -- leadership ---------------------------------------------------------------------------------------

    def step_aside(self) -> None:
        """To be called by anything of ours that is about to block: if this thread leads, another shall."""
        if self._leader == _thread.get_ident():
            self.hand_over()

    def take_over(self) -> bool:
        """The monitor's: the current run has lasted a whole tick. False where that was not possible."""
        if not self.hand_over():
            return False
        self.takeovers += 1
        return True

    def hand_over(self) -> bool:
        """End the current run's term and begin a new one, led by a standby or by a new thread."""
        try:
            standby = self._standbys.pop()
        except IndexError:
            new = self._new_standby()
            if new is None:
                return False
            standby = new
        if not self.token.end():
            self._standbys.append(standby)
            if self._closed:
                self._dismiss_standbys()  # it came back after `close` had looked
            return False
        self._begin_term(standby)
        return True

    def _begin_term(self, standby: _Standby) -> None:
        """Only by whoever has ended the term before."""
        self._leader = 0
        self.token = standby.token = Leadership(self.token.incoming)
        standby.lock.release()

    def _new_standby(self) -> _Standby | None:
        """None where this reactor is closed, or the system gives no thread: the leader stays then."""
        standby = _Standby()
        thread = threading.Thread(
            target=self._live, args=(standby,), name=f"rpcgroup-reactor-{self._name}", daemon=True
        )
        with self._lock:
            if self._closed:
                return None
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as exc:
            with self._lock:
                self._threads.discard(thread)
            if not self._starved:
                self._starved = True
                _log.warning("functions that block keep others waiting: the system gives no thread: %s", exc)
            return None
        return standby

    def _live(self, me: _Standby) -> None:
        try:
            while True:
                if not me.lock.acquire(True, STANDBY_SECONDS):
                    try:
                        self._standbys.remove(me)
                        return
                    except ValueError:
                        me.lock.acquire()  # somebody has just picked this one
                if self._closed:
                    return
                assert me.token is not None
                if self._lead(me.token):
                    self._standbys.append(me)
                else:
                    self._begin_term(me)
                if self._closed:
                    return
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _lead(self, token: Leadership) -> bool:
        """Until the term is over. False where a failure ended it, and this thread is to begin the next."""
        try:
            self._lead_term(token)
        except Exception:
            _log.exception("the reactor failed: this is a bug of rpcgroup")
            time.sleep(FAILURE_PAUSE)
            return not token.end() if token.runs & 1 else self.token is not token
        return True

    def _lead_term(self, token: Leadership) -> None:
        self._leader = _thread.get_ident()
        left = token.incoming
        if left is not None and not self._drain(left, token):
            return
        poll = self._epoll.poll
        while self.token is token and not self._closed:
            events = poll()
            # One-shot events first: an event taken by a thread that then loses the leadership is lost for ever.
            for fd, _ in events:
                if fd in self._outgoing:
                    if not self._read_unattended(events, token):
                        return
                    break
            for fd, _ in events:
                incoming = self._incoming.get(fd)
                if incoming is not None and not self._serve(incoming, token):
                    return

    def _read_unattended(self, events: list[tuple[int, int]], token: Leadership) -> bool:
        """Read what nobody waits for, and settle it; false when the leadership was lost on the way."""
        ready = [outgoing for fd, _ in events if (outgoing := self._outgoing.get(fd)) is not None]
        for outgoing in ready:
            # All of them before the first runs callbacks: the monitor arms again what has to wait behind one.
            outgoing.armed = False
        token.frame = None
        token.enter()
        self._wake_monitor()
        for outgoing in ready:
            outgoing.read_unattended()
            token.runs += 2
        return token.leave()

    def _serve(self, incoming: Incoming, token: Leadership) -> bool:
        """Read once, more for a large buffer, and run what came; false when the leadership was lost on the way."""
        channel = incoming.channel
        lock = channel.read_lock
        if not lock.acquire(False):
            return True
        try:
            channel.try_receive()
            for _ in range(LARGE_READS):
                if not channel.reader.filling:
                    break
                channel.try_receive()
        except BlockingIOError:
            if not channel.reader.frames:
                return True
        except Exception as exc:
            self.unwatch(incoming)
            incoming.broke(exc)
            return True
        finally:
            lock.release()
        incoming.read_time = time.monotonic()
        return self._drain(incoming, token)

    def _drain(self, incoming: Incoming, token: Leadership) -> bool:
        """Run what has been read; false when the leadership was lost on the way."""
        channel = incoming.channel
        frames = channel.reader.frames
        handlers, refuse = self._handlers, self._refuse
        token.incoming = incoming
        token.enter()
        self._wake_monitor()  # looks whether it sleeps after this has entered, as it looks here after it lay down
        started = time.monotonic()
        while frames:
            try:
                frame = frames.popleft()
            except IndexError:
                break
            token.frame = frame
            handlers.get(frame[0], refuse)(incoming, frame)
            token.runs += 2
            if self.token is not token:
                channel.flush()
                return False
            if channel.out and (len(channel.out) > WRITE_FRAMES or time.monotonic() - started > WRITE_AFTER):
                self._write(channel, token)
                started = time.monotonic()
        if channel.out:
            self._write(channel, token)
        return token.leave()

    def _write(self, channel: Channel, token: Leadership) -> None:
        # A write can block on a peer that does not read, so it counts as a run and can be taken over.
        token.frame = None
        channel.flush()
        token.runs += 2

    def close(self, timeout: float) -> None:
        """Stop leading; joins the threads that end within `timeout` seconds."""
        import os

        with self._lock:
            self._closed = True
            threads = list(self._threads)
        self.token = Leadership(None)  # who leads runs nothing more of what it has read
        started = self._wake_write >= 0
        if started:
            os.write(self._wake_write, b"x")
        self._dismiss_standbys()
        me = threading.current_thread()
        join_all([t for t in threads if t is not me], timeout)
        with self._table_lock:
            self._epoll.close()
        if started:
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _dismiss_standbys(self) -> None:
        while self._standbys:
            try:
                standby = self._standbys.pop()
            except IndexError:
                break
            standby.lock.release()
