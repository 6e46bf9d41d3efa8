"""Who is in the groups, from etcd: one watch over all of them, and what the operator asks of a member.

The etcd client blocks; its watch has a thread of its own, and requests run in a few more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rpcgroup.contract import ETCD_ROOT, MEMBERS
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.administrator import Administrator
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import Event, KeyValue
from rpcgroup.membership.etcd.watch import KeyRange, Probe, Watch
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.rendezvous import DrainRequest

__all__ = ["GroupKey", "Members"]

GroupKey = tuple[str, str]
"""Namespace and name."""

REQUESTS: Final = 8
"""Requests to etcd at once."""

_log = logging.getLogger(__name__)


class Members:
    """`on_change(group)` is called in the event loop after the records of a group have changed."""

    def __init__(self, client: EtcdClient, on_change: Callable[[GroupKey], None]) -> None:
        self._client = client
        self._administrator = Administrator(client)
        self._on_change = on_change
        self._records: dict[GroupKey, dict[str, MemberRecord]] = {}  # the event loop's
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="rpcgroup-etcd-request")
        self.listed = asyncio.Event()
        """What there was at the start is known. Until then nobody can tell a lost member from an unread one."""
        self.store = 0
        """Counts the times that everything had to be read anew: what was written before may be gone."""
        prefix = f"{ETCD_ROOT}/".encode()
        self._watch = Watch(client, KeyRange.of_prefix(prefix), self, "rpcgroup-etcd-groups")
        self._probe = Probe(client, prefix)

    def start(self) -> None:
        self._watch.start()
        self._probe.start()

    def of(self, group: GroupKey) -> Mapping[str, MemberRecord]:
        return self._records.get(group, {})

    def close(self) -> None:
        self._client.close()
        self._watch.stop()
        self._probe.stop()
        self._threads.shutdown(cancel_futures=True)

    # -- what is asked of a member --------------------------------------------------------------------------

    async def drain(self, group: GroupKey, name: str, request: DrainRequest) -> None:
        """Raises `RendezvousError`."""
        await self._run(lambda: self._administrator.drain(GroupKeys(*group), name, request))

    async def evict(self, group: GroupKey, name: str) -> None:
        await self._run(lambda: self._administrator.evict(GroupKeys(*group), name))

    async def _run(self, request: Callable[[], object]) -> None:
        await self._loop.run_in_executor(self._threads, request)

    # -- the watch's thread ---------------------------------------------------------------------------------

    def on_snapshot(self, values: Sequence[KeyValue], revision: int) -> None:
        found: dict[GroupKey, dict[str, MemberRecord]] = {}
        for value in values:
            if (place := _place_of(value.key)) and (record := _record_of(value)):
                found.setdefault(place[0], {})[place[1]] = record
        self._loop.call_soon_threadsafe(self._replace, found)

    def on_events(self, events: Sequence[Event]) -> None:
        changes = [
            (*place, None if event.is_delete else _record_of(event.kv))
            for event in events
            if (place := _place_of(event.kv.key))
        ]
        if changes:
            self._loop.call_soon_threadsafe(self._change, changes)

    # -- the event loop -------------------------------------------------------------------------------------

    def _replace(self, found: dict[GroupKey, dict[str, MemberRecord]]) -> None:
        before, self._records = self._records, found
        if self.listed.is_set():
            self.store += 1
        self.listed.set()
        for group in before.keys() | found.keys():
            if before.get(group) != found.get(group):
                self._on_change(group)

    def _change(self, changes: Iterable[tuple[GroupKey, str, MemberRecord | None]]) -> None:
        changed: set[GroupKey] = set()
        for group, name, record in changes:
            members = self._records.setdefault(group, {})
            if record is None:
                members.pop(name, None)
            else:
                members[name] = record
            if not members:
                del self._records[group]
            changed.add(group)
        for group in changed:
            self._on_change(group)


def _place_of(key: bytes) -> tuple[GroupKey, str] | None:
    """Group and member of a record's key; None for every other key of a group."""
    parts = key.decode(errors="replace").removeprefix(f"{ETCD_ROOT}/").split("/", 3)
    if len(parts) != 4 or parts[2] + "/" != MEMBERS:
        return None
    return (parts[0], parts[1]), parts[3]


def _record_of(value: KeyValue) -> MemberRecord | None:
    try:
        return MemberRecord.from_json(value.value, value.create_revision)
    except RendezvousError as exc:
        _log.warning("%r is no member record: %s", value.key, exc)
        return None
