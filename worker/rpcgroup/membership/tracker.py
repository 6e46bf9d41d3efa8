"""Who is in the group, who left and who died: one table of states and events, no I/O.

A lost lease is not a death, and neither is a broken connection. A member is dead only when its record is gone
without a farewell and it cannot be reached, or when whoever runs it took it out, or when another incarnation
has its name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import RecordEvent, RecordGone, RecordPut

__all__ = [
    "Change",
    "ChangeKind",
    "MemberStatus",
    "MemberTracker",
    "Reachable",
    "TrackerEvent",
    "Unreachable",
]


class ChangeKind(str, enum.Enum):
    """What became of a member."""

    JOINED = "joined"
    DRAINING = "draining"
    LEFT = "left"
    DIED = "died"


@dataclass(frozen=True)
class Change:
    """One line of the group's history, as this process sees it; `member` is the record at that moment."""

    kind: ChangeKind
    member: MemberRecord


class MemberStatus(enum.Enum):
    """How one incarnation of a member stands. All but ABSENT count as members."""

    ABSENT = enum.auto()
    PRESENT = enum.auto()
    UNREACHABLE = enum.auto()
    """Its record stands, but it cannot be reached."""
    MISSING = enum.auto()
    """Its record is gone without a farewell, and nothing yet says that it cannot be reached."""


@dataclass(frozen=True)
class Unreachable:
    """This process cannot reach that incarnation: refused, silent, or its address is somebody else's."""

    name: str
    incarnation: int


@dataclass(frozen=True)
class Reachable:
    """That incarnation answers (again)."""

    name: str
    incarnation: int


TrackerEvent = RecordEvent | Unreachable | Reachable


class _Event(enum.Enum):
    PUT = enum.auto()
    GONE = enum.auto()
    FAREWELL = enum.auto()
    EVICTED = enum.auto()
    SUPERSEDED = enum.auto()
    UNREACHABLE = enum.auto()
    REACHABLE = enum.auto()


_S, _E, _C = MemberStatus, _Event, ChangeKind

TRANSITIONS: Final[Mapping[tuple[MemberStatus, _Event], tuple[MemberStatus, ChangeKind | None]]] = (
    MappingProxyType(
        {
            (_S.ABSENT, _E.PUT): (_S.PRESENT, _C.JOINED),
            (_S.PRESENT, _E.PUT): (_S.PRESENT, None),
            (_S.PRESENT, _E.GONE): (_S.MISSING, None),
            (_S.PRESENT, _E.FAREWELL): (_S.ABSENT, _C.LEFT),
            (_S.PRESENT, _E.EVICTED): (_S.ABSENT, _C.DIED),
            (_S.PRESENT, _E.SUPERSEDED): (_S.ABSENT, _C.DIED),
            (_S.PRESENT, _E.UNREACHABLE): (_S.UNREACHABLE, None),
            (_S.PRESENT, _E.REACHABLE): (_S.PRESENT, None),
            (_S.UNREACHABLE, _E.PUT): (_S.UNREACHABLE, None),
            (_S.UNREACHABLE, _E.GONE): (_S.ABSENT, _C.DIED),
            (_S.UNREACHABLE, _E.FAREWELL): (_S.ABSENT, _C.LEFT),
            (_S.UNREACHABLE, _E.EVICTED): (_S.ABSENT, _C.DIED),
            (_S.UNREACHABLE, _E.SUPERSEDED): (_S.ABSENT, _C.DIED),
            (_S.UNREACHABLE, _E.UNREACHABLE): (_S.UNREACHABLE, None),
            (_S.UNREACHABLE, _E.REACHABLE): (_S.PRESENT, None),
            (_S.MISSING, _E.PUT): (_S.PRESENT, None),
            (_S.MISSING, _E.SUPERSEDED): (_S.ABSENT, _C.DIED),
            (_S.MISSING, _E.UNREACHABLE): (_S.ABSENT, _C.DIED),
            (_S.MISSING, _E.REACHABLE): (_S.MISSING, None),
        }
    )
)
"""A pair that is not here cannot happen: a record goes once, and news of the absent is dropped before."""


@dataclass(frozen=True)
class _Entry:
    status: MemberStatus
    record: MemberRecord


class MemberTracker:
    """Turns record events and what the agent learns of its connections into changes. Not thread-safe.

    An incarnation that this process took for dead and whose record comes back JOINED anew: it was cut off
    from here and from the rendezvous at once, and what was reclaimed meanwhile stays reclaimed.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    @property
    def members(self) -> dict[str, MemberRecord]:
        """Everybody not known to have left or died, by name."""
        return {name: entry.record for name, entry in self._entries.items()}

    @property
    def missing(self) -> list[MemberRecord]:
        """Members whose record is gone: the agent tries to reach each, and reports what it finds."""
        return [e.record for e in self._entries.values() if e.status is MemberStatus.MISSING]

    def status(self, name: str) -> MemberStatus:
        entry = self._entries.get(name)
        return entry.status if entry else MemberStatus.ABSENT

    def handle(self, event: TrackerEvent) -> list[Change]:
        """What changed by this event, in order; empty for news that is late or changes nothing."""
        if isinstance(event, RecordPut):
            return self._put(event.record)
        if isinstance(event, RecordGone):
            return self._gone(event.record)
        kind = _Event.UNREACHABLE if isinstance(event, Unreachable) else _Event.REACHABLE
        return self._apply(event.name, event.incarnation, kind)

    def _put(self, record: MemberRecord) -> list[Change]:
        if record.state is MemberState.EVICTED:
            return []  # the next event is that it is gone, and that one counts
        changes: list[Change] = []
        before = self._entries.get(record.name)
        if before and before.record.incarnation != record.incarnation:
            changes += self._supersede(before.record)
            before = None
        changes += self._step(record, before.status if before else MemberStatus.ABSENT, _Event.PUT)
        was_draining = before is not None and before.record.state is MemberState.DRAINING
        if record.state is MemberState.DRAINING and not was_draining:
            changes.append(Change(ChangeKind.DRAINING, record))
        return changes

    def _supersede(self, record: MemberRecord) -> list[Change]:
        farewell = record.state is MemberState.LEAVING
        return self._apply(record.name, record.incarnation, _E.FAREWELL if farewell else _E.SUPERSEDED)

    def _gone(self, record: MemberRecord) -> list[Change]:
        if record.state is MemberState.LEAVING:
            kind = _Event.FAREWELL
        elif record.state is MemberState.EVICTED:
            kind = _Event.EVICTED
        else:
            kind = _Event.GONE
        return self._apply(record.name, record.incarnation, kind)

    def _apply(self, name: str, incarnation: int, event: _Event) -> list[Change]:
        entry = self._entries.get(name)
        if entry is None or entry.record.incarnation != incarnation:
            return []
        return self._step(entry.record, entry.status, event)

    def _step(self, record: MemberRecord, status: MemberStatus, event: _Event) -> list[Change]:
        new, kind = TRANSITIONS[status, event]
        if new is MemberStatus.ABSENT:
            self._entries.pop(record.name, None)
        else:
            self._entries[record.name] = _Entry(new, record)
        return [Change(kind, record)] if kind else []
