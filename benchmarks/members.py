"""Workers that join and then do nothing: how long joining takes, and what idling costs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.meeting import Meeting
from benchmarks.stage import processes

__all__ = ["Finding", "idle", "joins"]

JOIN_SECONDS = 60.0
SETTLE_SECONDS = 0.2


@dataclass(frozen=True)
class Finding:
    """One figure and the most that issue 3 allows it to be."""

    name: str
    value: float
    unit: str
    at_most: float

    @property
    def met(self) -> bool:
        return self.value <= self.at_most

    def __str__(self) -> str:
        bar = f"bar <= {self.at_most:g} {self.unit}: {'met' if self.met else 'NOT MET'}"
        return f"{self.name}: {self.value:.3g} {self.unit} ({bar})"


class Member:
    """A worker process that has imported everything and joins when told."""

    def __init__(self, name: str, meeting: Meeting) -> None:
        context = processes()
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(name, meeting, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def join(self) -> float:
        """Join the group; seconds it took."""
        self._pipe.send(None)
        return self._receive()

    def processor_seconds(self) -> float:
        """Of all its threads since each began."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> float:
        if not self._pipe.poll(JOIN_SECONDS):
            raise TimeoutError(f"{self.name} said nothing for {JOIN_SECONDS:g} s")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        seconds: float = answer
        return seconds


def _live(name: str, meeting: Meeting, orders: Connection) -> None:
    os.environ.update(meeting.environment)
    import rpcgroup.api
    import rpcgroup.membership.etcd.rendezvous  # otherwise imported by the first join: that is process start

    orders.send(0.0)
    orders.recv()
    start = time.perf_counter()
    try:
        rpcgroup.init_rpc(name, init_method=meeting.rendezvous)
    except Exception as exc:
        orders.send(RuntimeError(f"{name} could not join: {type(exc).__name__}: {exc}"))
        return
    orders.send(time.perf_counter() - start)
    try:
        orders.recv()
    except (EOFError, ConnectionError):
        rpcgroup.shutdown(graceful=False)


@contextmanager
def _members(count: int, meeting: Meeting) -> Iterator[list[Member]]:
    members: list[Member] = []
    try:
        for number in range(count):
            members.append(Member(f"w{number}", meeting))
        yield members
    finally:
        for member in members:
            member.close()


def _join_and_settle(member: Member) -> float:
    """Seconds the join took; returns when those before it have had time to take note of it.

    Else the next join would also be measured against what a dozen processes do about this one, on two cores.
    """
    seconds = member.join()
    time.sleep(SETTLE_SECONDS)
    return seconds


def joins(etcd: str, *, workers: int = 12, times: int = 3, say: Callable[[str], None]) -> list[Finding]:
    """Workers join one after the other, in a new group each time; medians by place."""
    series = []
    for number in range(times):
        say(f"{workers} workers join one after the other, {number + 1} of {times}")
        with _members(workers, Meeting(etcd=etcd)) as members:
            series.append([_join_and_settle(member) for member in members])
    places = [statistics.median(place) * 1e3 for place in zip(*series, strict=True)]
    say("joins, ms: " + " ".join(f"{ms:.1f}" for ms in places))
    return [
        Finding(f"join {workers} beside join 1", places[-1] / places[0], "x", 1.3),
        Finding(f"join {workers}", places[-1], "ms", 60),
    ]


def idle(etcd: str, *, seconds: float, say: Callable[[str], None]) -> list[Finding]:
    """The processor a worker takes that is in a group of two and has nothing to do."""
    with _members(2, Meeting(etcd=etcd)) as members:
        for member in members:
            member.join()
        say(f"an idle worker for {seconds:g} s")
        time.sleep(1)  # joining is over
        before = members[0].processor_seconds()
        time.sleep(seconds)
        used = members[0].processor_seconds() - before
    return [Finding("processor of an idle worker", used / seconds * 100, "% of a core", 0.5)]
