"""What the entries of a dynamic group's log mean, read in order: pure, and so the same for every reader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, GroupView, RecordEvent, RecordGone, RecordPut

__all__ = ["Drain", "MemberLog", "drain_entry", "gone_entry", "record_entry"]


@dataclass(frozen=True)
class Drain:
    """Somebody asks a member to leave."""

    incarnation: int
    request: DrainRequest


def record_entry(record: MemberRecord) -> str:
    """A member comes, comes back, changes, or goes (LEAVING, EVICTED)."""
    return json.dumps({"record": record.to_json().decode()})


def gone_entry(member: MemberRecord) -> str:
    """A member looks dead to somebody."""
    return json.dumps({"gone": member.name, "incarnation": member.incarnation})


def drain_entry(member: MemberRecord, request: DrainRequest) -> str:
    return json.dumps({"drain": member.incarnation, "deadline": request.deadline, "reason": request.reason})


class MemberLog:
    """The members after the entries read so far. Not thread-safe.

    An entry that does not fit is void: a record whose name is another's, the end of who has ended already.
    """

    def __init__(self) -> None:
        self.position = 1
        """Of the next entry."""
        self.members: dict[str, MemberRecord] = {}
        self.epoch = 0

    @property
    def view(self) -> GroupView:
        return GroupView(self.epoch, dict(self.members))

    def read(self, entry: str) -> list[RecordEvent | Drain]:
        """Take in the next entry; returns what it changed."""
        raw: dict[str, Any] = json.loads(entry)
        events: list[RecordEvent | Drain]
        if "record" in raw:
            events = [*self._record(MemberRecord.from_json(raw["record"].encode(), self.position))]
        elif "gone" in raw:
            events = [*self._gone(raw["gone"], raw["incarnation"])]
        else:
            return self._next([Drain(raw["drain"], DrainRequest(raw["deadline"], raw["reason"]))])
        if events:
            self.epoch = self.position
        return self._next(events)

    def _next(self, events: list[RecordEvent | Drain]) -> list[RecordEvent | Drain]:
        self.position += 1
        return events

    def _record(self, record: MemberRecord) -> list[RecordEvent]:
        present = self.members.get(record.name)
        is_same = present is not None and present.token == record.token
        if record.state is MemberState.EVICTED or record.state is MemberState.LEAVING:
            if not is_same:
                return []
            del self.members[record.name]
            return [RecordPut(record), RecordGone(record)]
        if present is None or is_same:
            self.members[record.name] = record
            return [RecordPut(record)]
        if record.pod_uid and record.pod_uid == present.pod_uid:  # an earlier life in the same pod
            self.members[record.name] = record
            return [RecordGone(present), RecordPut(record)]
        return []

    def _gone(self, name: str, incarnation: int) -> list[RecordEvent]:
        present = self.members.get(name)
        if present is None or present.incarnation != incarnation:
            return []
        del self.members[name]
        return [RecordGone(present)]
