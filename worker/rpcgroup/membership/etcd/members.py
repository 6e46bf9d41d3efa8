"""From the values under `members/` to views and record events; pure (but for a line in the log)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import Event, KeyValue
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.rendezvous import GroupView, RecordEvent, RecordGone, RecordPut

__all__ = ["MemberBook"]

_log = logging.getLogger(__name__)


class MemberBook:
    """The records as this process last heard of them. Not thread-safe."""

    def __init__(self, keys: GroupKeys) -> None:
        self._keys = keys
        self._members: dict[str, MemberRecord] = {}
        self._epoch = 0

    @property
    def view(self) -> GroupView:
        return GroupView(self._epoch, dict(self._members))

    def replace(self, values: Sequence[KeyValue], revision: int) -> list[RecordEvent]:
        """What is there now; the events are the differences, as if each had been heard of."""
        found = {record.name: record for record in map(self._record, values) if record}
        events: list[RecordEvent] = []
        for name in sorted(self._members.keys() - found.keys()):
            events.append(RecordGone(self._members.pop(name)))
        for record in sorted(found.values(), key=lambda record: record.incarnation):
            if self._members.get(record.name) != record:
                self._members[record.name] = record
                events.append(RecordPut(record))
        if events:
            somebody_went = any(isinstance(event, RecordGone) for event in events)
            self._advance(revision if somebody_went else max(kv.mod_revision for kv in values))
        return events

    def apply(self, changes: Iterable[Event]) -> list[RecordEvent]:
        events: list[RecordEvent] = []
        for change in changes:
            name = self._keys.member_name(change.kv.key)
            if change.is_delete:
                if name in self._members:
                    events.append(RecordGone(self._members.pop(name)))
            elif record := self._record(change.kv):
                self._members[name] = record
                events.append(RecordPut(record))
            self._advance(change.kv.mod_revision)
        return events

    def _advance(self, revision: int) -> None:
        """Revisions begin anew where etcd lost its store; the epoch does not."""
        self._epoch = revision if revision > self._epoch else self._epoch + 1

    def _record(self, kv: KeyValue) -> MemberRecord | None:
        name = self._keys.member_name(kv.key)
        try:
            record = MemberRecord.from_json(kv.value, kv.create_revision)
        except RendezvousError as exc:
            _log.warning("the record of %r cannot be read, and counts as none: %s", name, exc)
            return None
        if record.name != name:
            _log.warning("the record under %r is that of %r, and counts as none", name, record.name)
            return None
        return record
