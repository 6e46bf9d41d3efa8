"""Threads for what may block."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Pool"]

BASE_THREADS: Final = 16
MAX_THREADS: Final = 16384
"""A callee that waits costs a thread; beyond this the process runs into the system's own limits."""
GROWTH: Final = 16
"""Threads a tick, while all are busy. Linear: a loaded machine makes no progress either, and must not explode."""
IDLE_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class Pool:
    """Starts threads as they are needed and lets idle ones go; `close` joins them."""

    def __init__(self, name: str, wake_monitor: Callable[[], None]) -> None:
        self._name = name
        self._wake_monitor = wake_monitor
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _threads, _closed
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._unfinished = 0
        self._count_lock = threading.Lock()  # guards _unfinished: the jobs that wait or run
        self.done = 0
        """Jobs finished; may miss some, the monitor only looks whether it changes."""

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` soon. It must not raise; what it raises is logged. Dropped after `close`."""
        with self._count_lock:
            self._unfinished += 1
        self._jobs.put(job)
        if len(self._threads) < min(BASE_THREADS, self._unfinished):
            self._start(1)
        else:
            self._wake_monitor()  # it lets the pool grow, should nobody be free after all

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return self._jobs.qsize()

    @property
    def saturated(self) -> bool:
        """All threads are inside jobs."""
        return self._unfinished - self._jobs.qsize() >= len(self._threads)

    @property
    def size(self) -> int:
        return len(self._threads)

    def grow(self) -> None:
        self._start(min(GROWTH, self._jobs.qsize(), MAX_THREADS - len(self._threads)))

    def close(self, timeout: float) -> None:
        """Let no more jobs in and join the threads that end within `timeout` seconds.

        A user function that never returns keeps its thread: it is a daemon thread and named in the log.
        """
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        me = threading.current_thread()
        join_all([t for t in threads if t is not me], timeout)

    def _start(self, count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=self._run, name=f"rpcgroup-{self._name}", daemon=True)
            with self._lock:
                if self._closed:
                    return
                self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError as exc:
                with self._lock:
                    self._threads.discard(thread)
                _log.warning("%d threads are at work and the system gives no more: %s", self.size, exc)
                return

    def _run(self) -> None:
        get = self._jobs.get
        while True:
            try:
                job = get(True, IDLE_SECONDS)
            except queue.Empty:
                if self._retire():
                    return
                continue
            if job is None:
                with self._lock:
                    self._threads.discard(threading.current_thread())
                return
            try:
                job()
            except BaseException:
                _log.exception("a job of the agent failed: this is a bug of rpcgroup")
            with self._count_lock:
                self._unfinished -= 1
            self.done += 1
            job = None

    def _retire(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            # First no longer counted, then looked again: whoever submits after this starts another thread.
            self._threads.discard(threading.current_thread())
            if self._jobs.qsize():
                self._threads.add(threading.current_thread())
                return False
            return True


def join_all(threads: list[threading.Thread], timeout: float) -> None:
    """Join within `timeout` seconds in all; name in the log what did not end."""
    import time

    deadline = time.monotonic() + timeout
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))
    stuck = [t.name for t in threads if t.is_alive()]
    if stuck:
        _log.warning("%d threads still run user functions and are left behind: %s", len(stuck), stuck[:5])
