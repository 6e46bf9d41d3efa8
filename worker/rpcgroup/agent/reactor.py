"""The reactor: one leading thread reads requests and runs their functions where it read them.

The leadership is a token. Whoever leads gives it away before it blocks in a call of its own; the monitor takes
it away from a run that lasts a whole tick. The old leader notices when its run ends, and joins the standbys.
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
from rpcgroup.errors import RemoteProtocolError
from rpcgroup.transport.channel import Channel
from rpcgroup.wire.frames import Frame

__all__ = ["Handler", "Handlers", "Incoming", "Leadership", "Outgoing", "Reactor"]

WRITE_AFTER: Final = 200e-6
"""Seconds of running functions after which the answers so far are written."""
WRITE_FRAMES: Final = 64
STANDBY_SECONDS: Final = 5.0

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

    def read_unattended(self) -> None: ...


Handler = Callable[[Any, Frame], None]
Handlers = Mapping[int, Handler]


class Leadership:
    """One term of one leader. `runs` is odd while its thread is inside something that may block."""

    __slots__ = ("frame", "incoming", "runs")

    def __init__(self, left_behind: Incoming | None) -> None:
        self.runs = 0
        self.incoming = left_behind
        self.frame: Frame | None = None


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
        self._lock = threading.Lock()  # guards _threads, _closed
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._wake_read, self._wake_write = -1, -1
        self._leader = 0
        """Identity of the leading thread; 0 between two terms."""
        self.token = Leadership(None)
        self.takeovers = 0

    def start(self) -> None:
        import os

        self._wake_read, self._wake_write = os.pipe()
        self._epoll.register(self._wake_read, _READ)
        self.hand_over()

    # -- what is watched ----------------------------------------------------------------------------------

    def watch(self, incoming: Incoming) -> None:
        """Read requests from this channel from now on."""
        fd = incoming.channel.stream.fileno()
        self._incoming[fd] = incoming
        self._register(fd, _READ)

    def unwatch(self, incoming: Incoming) -> None:
        """Before its stream is closed: the number of the descriptor will be given to another."""
        self._forget(incoming.channel.stream.fileno(), self._incoming)

    def pause(self, incoming: Incoming, paused: bool) -> None:
        """Leave the peer's requests in the kernel, or read them again."""
        try:
            self._epoll.modify(incoming.channel.stream.fileno(), 0 if paused else _READ)
        except (OSError, ValueError):
            pass  # the connection broke meanwhile

    def add_outgoing(self, fd: int, outgoing: Outgoing) -> None:
        self._outgoing[fd] = outgoing
        self._register(fd, _READ_ONCE)

    def remove_outgoing(self, fd: int) -> None:
        self._forget(fd, self._outgoing)

    def _register(self, fd: int, events: int) -> None:
        try:
            self._epoll.register(fd, events)
        except (OSError, ValueError):
            pass  # the connection broke, or this reactor was closed, meanwhile

    def arm(self, fd: int) -> None:
        """Tell `read_unattended` once when there is something to read."""
        try:
            self._epoll.modify(fd, _READ_ONCE)
        except (OSError, ValueError):
            pass  # closed meanwhile

    def _forget(self, fd: int, table: dict[int, Incoming] | dict[int, Outgoing]) -> None:
        if table.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            pass  # closed meanwhile

    # -- leadership ---------------------------------------------------------------------------------------

    def step_aside(self) -> None:
        """To be called by anything of ours that is about to block: if this thread leads, another shall."""
        if self._leader == _thread.get_ident():
            self.hand_over()

    def hand_over(self) -> None:
        """Begin a new term, led by a standby or by a new thread."""
        token = Leadership(self.token.incoming)
        self.token = token
        self._leader = 0
        try:
            standby = self._standbys.pop()
        except IndexError:
            self._start_thread(token)
        else:
            standby.token = token
            standby.lock.release()

    def take_over(self) -> None:
        """The monitor's: the current run has lasted a whole tick."""
        self.takeovers += 1
        self.hand_over()

    def _start_thread(self, token: Leadership) -> None:
        thread = threading.Thread(
            target=self._live, args=(token,), name=f"rpcgroup-reactor-{self._name}", daemon=True
        )
        with self._lock:
            if self._closed:
                return
            self._threads.add(thread)
        thread.start()

    def _live(self, token: Leadership) -> None:
        me = _Standby()
        try:
            while not self._closed:
                self._lead(token)
                self._standbys.append(me)
                if self._closed or not me.lock.acquire(True, STANDBY_SECONDS):
                    try:
                        self._standbys.remove(me)
                        return
                    except ValueError:
                        me.lock.acquire()  # somebody has just picked this one
                assert me.token is not None
                token = me.token
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _lead(self, token: Leadership) -> None:
        if self.token is not token:
            return
        self._leader = _thread.get_ident()
        left = token.incoming
        if left is not None and not self._drain(left, token):
            return
        poll = self._epoll.poll
        while self.token is token and not self._closed:
            events = poll()
            # One-shot events first: an event taken by a thread that then loses the leadership is lost for ever.
            for fd, _ in events:
                outgoing = self._outgoing.get(fd)
                if outgoing is not None:
                    token.frame = None
                    token.runs += 1
                    outgoing.read_unattended()
                    token.runs += 1
            if self.token is not token:
                return
            for fd, _ in events:
                incoming = self._incoming.get(fd)
                if incoming is not None and not self._serve(incoming, token):
                    return

    def _serve(self, incoming: Incoming, token: Leadership) -> bool:
        """Read once and run what came; false when the leadership was lost on the way."""
        channel = incoming.channel
        lock = channel.read_lock
        if not lock.acquire(False):
            return True
        try:
            channel.try_receive()
        except BlockingIOError:
            return True
        except (OSError, EOFError, RemoteProtocolError) as exc:
            self.unwatch(incoming)
            incoming.broke(exc)
            return self.token is token
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
        self._wake_monitor()
        started = time.monotonic()
        while frames:
            try:
                frame = frames.popleft()
            except IndexError:
                break
            token.frame = frame
            token.runs += 1
            handlers.get(frame[0], refuse)(incoming, frame)
            token.runs += 1
            if self.token is not token:
                channel.flush()
                return False
            if channel.out and (
                len(channel.out) > WRITE_FRAMES or time.monotonic() - started > WRITE_AFTER
            ):
                if not self._write(channel, token):
                    return False
                started = time.monotonic()
        return self._write(channel, token) if channel.out else self.token is token

    def _write(self, channel: Channel, token: Leadership) -> bool:
        # A write can block on a peer that does not read, so it counts as a run and can be taken over.
        token.frame = None
        token.runs += 1
        channel.flush()
        token.runs += 1
        return self.token is token

    def close(self, timeout: float) -> None:
        """Stop leading; joins the threads that end within `timeout` seconds."""
        import os

        with self._lock:
            self._closed = True
            threads = list(self._threads)
        os.write(self._wake_write, b"x")
        while self._standbys:
            try:
                standby = self._standbys.pop()
            except IndexError:
                break
            standby.token = Leadership(None)
            standby.lock.release()
        me = threading.current_thread()
        join_all([t for t in threads if t is not me], timeout)
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
