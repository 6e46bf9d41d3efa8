"""The monitor: a thread that ticks every millisecond while there is traffic, and sleeps otherwise.

Nothing here may block or run a user's code: such work goes to the pools.
"""

from __future__ import annotations

import _thread
import heapq
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.link import Link
    from rpcgroup.transport.channel import Channel

__all__ = ["Monitor"]

TICK: Final = 0.001
QUIET_TICKS: Final = 20
"""Ticks without traffic after which the monitor sleeps."""
SLOW_RUNS: Final = 8
"""Quick runs in the pool that a slow function owes before the reactor runs it again."""
FAILURE_PAUSE: Final = 0.1
"""Seconds after a tick that failed: the next may fail too, and each is logged."""
HEARTBEAT: Final = 0.5
"""Seconds between two looks at the silence of peers that owe an answer."""

LONGEST_SLEEP: Final = 3600.0
"""Seconds; a user's timeout may be longer than what the system can wait for in one go."""
UNREAD_LIMIT: Final = 8192
"""Calls that a caller may send without reading before their answers are read for it."""

_log = logging.getLogger(__name__)


class Monitor:
    """Owns its thread and the timers; `close` joins it."""

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent = agent
        self.cold = True
        """Asleep. Whoever makes traffic looks here *after* having queued it, and wakes the monitor."""
        self._lock = _thread.allocate_lock()  # held while asleep; released to wake
        self._lock.acquire()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timers_lock = threading.Lock()  # guards _timers, and next_deadline where it is brought forward
        self._soon: deque[Callable[[], None]] = deque()
        self._count = itertools.count()
        self.next_deadline = math.inf
        self._next_heartbeat = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"rpcgroup-monitor-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float) -> None:
        self._closed = True
        self.wake()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout)

    def wake(self) -> None:
        """There is traffic. Safe in any thread and inside the garbage collector."""
        if self.cold:
            self.cold = False
            try:
                self._lock.release()
            except RuntimeError:
                pass  # somebody else was faster

    def call_later(self, delay: float, job: Callable[[], None]) -> None:
        """Have `job` done in `delay` seconds."""
        at = time.monotonic() + delay
        with self._timers_lock:
            heapq.heappush(self._timers, (at, next(self._count), job))
            first = self._timers[0][0] == at
        if first:
            self.wake()

    def call_soon(self, job: Callable[[], None]) -> None:
        """Have `job` done. Takes no lock, so that signal handlers can use it."""
        self._soon.append(job)
        self.wake()

    def expect(self, deadline: float) -> None:
        """A call that nobody may be waiting for ends at `deadline`."""
        with self._timers_lock:
            sooner = deadline < self.next_deadline
            if sooner:
                self.next_deadline = deadline
        if sooner:
            self.wake()

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        seconds = self._sleep_seconds()
        while not self._closed:
            self._lock.acquire(True, seconds)
            self.cold = False
            try:
                self._tick_while_busy()
                self._fall_asleep()
                seconds = self._sleep_seconds()
            except Exception:
                _log.exception("the monitor failed in a tick: this is a bug of rpcgroup")
                self._lock.acquire(True, FAILURE_PAUSE)
                self.cold = True
                self.wake()  # it was awake, and nobody would wake it
                self.cold = True
                seconds = HEARTBEAT

    def _sleep_seconds(self) -> float:
        wake_at = []
        with self._timers_lock:
            if self._timers:
                wake_at.append(self._timers[0][0])
        if self.next_deadline < math.inf:
            wake_at.append(self.next_deadline)
        now = time.monotonic()
        if any(link.pending or link.listeners for link in self._agent.connections.links):
            wake_at.append(now + HEARTBEAT)
        return min(max(0.0, min(wake_at) - now), LONGEST_SLEEP) if wake_at else -1

    def _tick_while_busy(self) -> None:
        quiet = 0
        watched: tuple[object, int] | None = None
        traffic: dict[int, tuple[int, int]] = {}
        reactor = self._agent.reactor
        pools = {self._agent.pool: -1, self._agent.chores: -1}
        while quiet < QUIET_TICKS and not self._closed:
            token = reactor.token
            now = token, token.runs
            busy = now != watched
            if not busy and token.runs & 1:
                self._take_over()
                watched = None
                busy = True
            else:
                watched = now
            busy |= self._tend_links(traffic)
            for pool, done in pools.items():
                if pool.waiting:
                    busy = True
                    if pool.done == done and pool.saturated:
                        pool.grow()
                pools[pool] = pool.done
            self._run_timers()
            quiet = 0 if busy else quiet + 1
            self._lock.acquire(True, TICK)

    def _take_over(self) -> None:
        reactor = self._agent.reactor
        token = reactor.token
        frame, incoming = token.frame, token.incoming
        if not reactor.take_over():
            return
        if frame is not None:
            function = getattr(incoming, "functions", {}).get(frame[3])
            if function is not None:
                function.slow = SLOW_RUNS
        if incoming is not None and not incoming.channel.try_flush():
            self._agent.chores.submit(incoming.channel.flush)

    def _tend_links(self, traffic: dict[int, tuple[int, int]]) -> bool:
        """Write what is held back; have unattended answers read and settled. True when there was traffic.

        A caller that is still sending will come and read by itself, which is cheaper than reading beside it.
        """
        busy = False
        for link in self._agent.connections.links:
            channel = link.channel
            if channel.out:
                if not channel.try_flush():
                    self._agent.chores.submit(channel.flush)
                busy = True
            activity, reads = traffic.get(id(link), (-1, -1))
            link.prompt = paused = activity == link.activity
            if (link.activity, channel.reads) != (activity, reads):
                traffic[id(link)] = link.activity, channel.reads
                busy = True
            unread = (paused and reads == channel.reads) or len(link.pending) > UNREAD_LIMIT
            if unread and not link.reader.armed and not channel.read_lock.locked():
                # Also without pending calls: a goodbye, or the end of the connection, is to be seen.
                link.reader.arm()
                busy = True
            if link.unsettled:
                busy = True
                self._tend_futures(link, paused)
        return busy

    def _tend_futures(self, link: Link, paused: bool) -> None:
        """Answers that nobody has fetched for a whole tick are settled in the pool."""
        if len(link.unsettled) > UNREAD_LIMIT:
            self._agent.pool.submit(link.settle)
            return
        try:
            first = next(iter(link.unsettled), 0)
        except RuntimeError:
            return  # it changes at this moment
        if paused and first and link.first_unsettled == first:
            self._agent.pool.submit(link.settle)
        link.first_unsettled = first

    def _run_timers(self) -> None:
        while self._soon:
            self._agent.chores.submit(self._soon.popleft())
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            with self._timers_lock:
                if not self._timers or self._timers[0][0] > now:
                    break
                job = heapq.heappop(self._timers)[2]
            self._agent.chores.submit(job)
        if self.next_deadline <= now:
            self.next_deadline = math.inf
            self._agent.connections.sweep(now)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT
            self._agent.connections.check_silence()

    def _fall_asleep(self) -> None:
        """Leave everything so that nothing is missed while nobody ticks."""
        agent = self._agent
        for link in agent.connections.links:
            if not link.reader.armed:
                link.reader.arm()
            self._acknowledge(link.channel)
        for session in agent.connections.sessions():
            if session.channel is not None:
                self._acknowledge(session.channel)
        agent.reap()
        token, runs = agent.reactor.token, agent.reactor.token.runs
        self.cold = True
        # Whoever queued something before it could see `cold` is found here.
        if (
            runs & 1
            or (token, runs) != (agent.reactor.token, agent.reactor.token.runs)
            or agent.pool.waiting
            or agent.chores.waiting
            or self._soon
            or any(
                link.channel.out or link.unsettled or (link.pending and not link.reader.armed)
                for link in agent.connections.links
            )
        ):
            self.wake()

    def _acknowledge(self, channel: Channel) -> None:
        if channel.reader.received != channel.acked_to_peer and not channel.send_acknowledgement():
            self._agent.chores.submit(channel.flush)
