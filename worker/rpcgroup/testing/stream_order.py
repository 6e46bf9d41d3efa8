"""Is everything that is enqueued on streams ordered as its use of memory needs it? By vector clocks.

Pure: streams here are `Lane`s, tensors are `Memory` and a span of its bytes. Each lane does its work in the order in
which it was enqueued, and knows how far each other lane has come before its own next piece of work. The host is one
more that knows this; what is enqueued is behind all that the host has seen the end of.

Source: C. Flanagan, S. N. Freund, FastTrack (PLDI 2009); PyTorch's notes on CUDA semantics for what a free means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["EVERYTHING", "Clock", "Lane", "Memory", "Span", "StreamOrder", "Use"]

Clock = dict["Lane", int]
"""How many pieces of work of each lane are known to be done before."""


class Span(NamedTuple):
    """Bytes of a memory, from `start` up to `end`."""

    start: int
    end: int

    def meets(self, other: Span) -> bool:
        return self.start < other.end and other.start < self.end

    def covers(self, other: Span) -> bool:
        return self.start <= other.start and other.end <= self.end


EVERYTHING = Span(0, 1 << 62)


@dataclass(eq=False)
class Lane:
    """A stream: `done` is its clock behind all that has been enqueued on it."""

    name: str
    clock: Clock = field(default_factory=dict, repr=False)
    seen_of_host: int = field(default=0, repr=False)
    """The host's version that the clock includes."""


@dataclass(eq=False)
class Memory:
    """Of a device, with the lane it was allocated on; or of the host, without one."""

    name: str
    home: Lane | None = None
    accesses: list[Access] = field(default_factory=list)
    """Those that a later use can still be in conflict with."""
    retained: set[Lane] = field(default_factory=set)
    users: set[Lane] = field(default_factory=set)


class Use(NamedTuple):
    memory: Memory
    span: Span
    writes: bool


@dataclass(frozen=True)
class Access:
    lane: Lane
    time: int
    span: Span
    writes: bool
    work: str
    """What was enqueued, and where."""

    def known_to(self, clock: Clock) -> bool:
        return clock.get(self.lane, 0) >= self.time

    def __str__(self) -> str:
        return f"{'write' if self.writes else 'read'} by {self.work} on {self.lane.name}"


class StreamOrder:
    """Not thread-safe. Nothing raises: what is wrong is added to `violations`, a line for each."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._host: Clock = {}
        self._host_version = 0

    def enqueue(self, lane: Lane, work: str, uses: Iterable[Use]) -> None:
        """`work` says what and where, for people."""
        time = self._advance(lane)
        for memory, span, writes in uses:
            if span.start < span.end:
                memory.users.add(lane)
                self._use(memory, Access(lane, time, span, writes, work), lane.clock)

    def snapshot(self, lane: Lane) -> Clock:
        """The clock of an event that is recorded now."""
        self._follow_host(lane)
        return lane.clock.copy()

    def wait(self, lane: Lane, clock: Clock) -> None:
        """What is enqueued on the lane from now on is behind the event."""
        _merge(lane.clock, clock)

    def synchronize(self, clock: Clock) -> None:
        """The host has seen the end of the work before the event."""
        if any(self._host.get(lane, 0) < time for lane, time in clock.items()):
            _merge(self._host, clock)
            self._host_version += 1

    def access_by_host(self, memory: Memory, span: Span, work: str) -> None:
        """Now, to read or write."""
        for earlier in memory.accesses:
            if earlier.span.meets(span) and not earlier.known_to(self._host):
                self._report(
                    f"the host uses {memory.name} in {work}, and has not synchronized with the {earlier}"
                )

    def allocate(self, lane: Lane, name: str, work: str) -> Memory:
        """What has been there before may still be in use, by what the lane has to do: as if it were written."""
        memory = Memory(name, lane)
        memory.accesses.append(
            Access(lane, self._advance(lane), EVERYTHING, True, f"the allocation in {work}")
        )
        return memory

    def retain(self, memory: Memory, lane: Lane) -> None:
        memory.retained.add(lane)

    def free(self, memory: Memory, work: str) -> None:
        """The lane it was allocated on uses it again, behind what the lanes that it is retained for have to do now."""
        home = memory.home
        assert home is not None
        reuse = self.snapshot(home)
        for lane in memory.retained:
            _merge(reuse, lane.clock)
        for use in memory.accesses:
            if not use.known_to(reuse):
                self._report(
                    f"{memory.name} is freed in {work} for {home.name}, which does not wait for the {use}, and it "
                    "was not retained there"
                )

    def _use(self, memory: Memory, access: Access, clock: Clock) -> None:
        kept = []
        for earlier in memory.accesses:
            known = earlier.known_to(clock)
            if not known and (earlier.writes or access.writes) and earlier.span.meets(access.span):
                self._report(f"{memory.name}: the {access} is not behind the {earlier}")
            # What is behind this access is then behind the earlier one; a read stands for no write before it.
            replaced = known and (access.writes or not earlier.writes) and access.span.covers(earlier.span)
            if not replaced:
                kept.append(earlier)
        memory.accesses = [*kept, access]

    def _advance(self, lane: Lane) -> int:
        self._follow_host(lane)
        lane.clock[lane] = time = lane.clock.get(lane, 0) + 1
        return time

    def _follow_host(self, lane: Lane) -> None:
        if lane.seen_of_host != self._host_version:
            _merge(lane.clock, self._host)
            lane.seen_of_host = self._host_version

    def _report(self, line: str) -> None:
        if line not in self.violations:
            self.violations.append(line)


def _merge(clock: Clock, other: Clock) -> None:
    for lane, time in other.items():
        if clock.get(lane, 0) < time:
            clock[lane] = time
