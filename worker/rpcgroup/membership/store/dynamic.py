"""A group whose members come and go, over a c10d store: a log that each appends to and all read.

The entry at a position is claimed by `compare_set`, so there is one order for all, without a lock and without a
call to anybody. A store tells nobody of news: each member looks at the next position once in a while when idle,
and when it is asked about somebody it does not know.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rpcgroup.errors import (
    JoinError,
    MemberExistsError,
    NotInitializedError,
    RendezvousUnavailableError,
    UnknownWorkerError,
)
from rpcgroup.membership.record import MemberRecord, MemberState, new_token
from rpcgroup.membership.rendezvous import DrainRequest, GroupListener, GroupView, RecordEvent, RecordPut
from rpcgroup.membership.store.client import StoreClient
from rpcgroup.membership.store.key_value import StoreKeyValue
from rpcgroup.membership.store.log import Drain, MemberLog, drain_entry, gone_entry, record_entry

__all__ = ["DynamicRendezvous"]

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks of an idle member."""
PREDECESSOR_PAUSE: Final = 0.05
CLOSE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class DynamicRendezvous:
    """The `Rendezvous` interface, but for what belongs to leases: nothing ends a record but its member's farewell,
    or another that finds it dead, or `evict`; and for stats, which nobody could read from outside.
    """

    has_leases = False

    def __init__(self, client: StoreClient, look_interval: float = LOOK_INTERVAL) -> None:
        self._client = client
        self._interval = look_interval
        self._kv = StoreKeyValue(client)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # guards the rest, and that the listener is called once at a time
        self._log = MemberLog()
        self._record: MemberRecord | None = None
        """What this seat wants to stand in the log."""
        self._listener: GroupListener | None = None
        self._view: GroupView | None = None
        """What the listener was told last."""
        self._watch: _Watch | None = None

    def join(
        self,
        record: MemberRecord,
        *,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        listener: GroupListener,
        timeout: float,
    ) -> MemberRecord:
        self._await_predecessor(record, time.monotonic() + timeout)
        with self._lock:
            if self._record:
                raise JoinError(f"this seat has joined already, as {self._record.name!r}")
            mine, earlier = self._enter(replace(record, token=record.token or new_token()))
            try:
                admit(mine, earlier)
            except BaseException as exc:
                self._append(record_entry(replace(mine, state=MemberState.LEAVING, reason=str(exc))))
                raise
            self._record, self._listener, self._view = mine, listener, self._log.view
            listener.on_view(self._view, [RecordPut(member) for member in [*earlier, mine]])
            self._watch = _Watch(f"rpcgroup-store-{mine.name}", self._interval, self.refresh)
        self._watch.start()
        return mine

    def update(self, **changes: Any) -> MemberRecord:
        with self._lock:
            if self._record is None:
                raise NotInitializedError("update: this worker has not joined the group")
            self._record = replace(self._record, **changes)
            self.refresh()
            stored = self._log.members.get(self._record.name)
            if stored and stored.token != self._record.token:
                raise MemberExistsError(
                    f"another worker has taken the name {stored.name!r} ({stored.address})"
                )
            if stored != self._record:
                self._append(record_entry(self._record))
            return self._record

    def leave(self, timeout: float) -> None:
        """The store may not answer, while this or another thread asks it: the farewell is then on its own."""
        farewell = threading.Thread(target=self._leave, name="rpcgroup-store-farewell", daemon=True)
        farewell.start()  # ends when the store answers or fails
        farewell.join(timeout)
        if farewell.is_alive():
            _log.info("left without a farewell: the store did not answer within %g s", timeout)

    def _leave(self) -> None:
        with self._lock:
            mine, self._record = self._record, None
            self._listener = self._view = None
        self._stop_watching()
        if mine is None or self._pid != os.getpid():
            return
        try:
            self.refresh()
            with self._lock:
                if mine.name in self._log.members:
                    self._append(record_entry(replace(mine, state=MemberState.LEAVING)))
        except RendezvousUnavailableError as exc:
            _log.info("left without a farewell: %s", exc)

    def view(self) -> GroupView:
        with self._lock:
            if self._view is None:
                self.refresh()
            return self._view or self._log.view

    def refresh(self) -> None:
        with self._lock:
            while (entry := self._client.read(_entry(self._log.position))) is not None:
                self._take(entry)
            self._return_record()

    def request_drain(self, name: str, request: DrainRequest) -> None:
        with self._lock:
            self.refresh()
            member = self._log.members.get(name)
            if member is None:
                raise UnknownWorkerError(
                    f"cannot drain {name!r}: the members are {sorted(self._log.members)}"
                )
            self._append(drain_entry(member, request))

    def evict(self, name: str) -> None:
        with self._lock:
            self.refresh()
            member = self._log.members.get(name)
            if member is not None:
                self._append(record_entry(replace(member, state=MemberState.EVICTED)))

    def suspect(self, member: MemberRecord) -> None:
        with self._lock:
            self.refresh()
            stored = self._log.members.get(member.name)
            if stored and stored.incarnation == member.incarnation:
                self._append(gone_entry(member))

    def put_stats(self, stats: bytes) -> None:
        """Nobody looks at the stats of a group that meets over a store."""

    def stats(self) -> Mapping[str, bytes]:
        return {}

    @property
    def kv(self) -> StoreKeyValue:
        return self._kv

    def close(self) -> None:
        held = self._lock.acquire(timeout=CLOSE_SECONDS)  # whoever holds it may be waiting for the store
        self._record = self._listener = None
        if held:
            self._lock.release()
        self._stop_watching()

    # -- joining ------------------------------------------------------------------------------------------

    def _await_predecessor(self, record: MemberRecord, deadline: float) -> None:
        """The worker of an earlier pod of my name may live for a moment yet."""
        while True:
            self.refresh()
            stored = self._log.members.get(record.name)
            if stored is None or not record.follows(stored) or time.monotonic() >= deadline:
                return
            time.sleep(PREDECESSOR_PAUSE)

    def _enter(self, record: MemberRecord) -> tuple[MemberRecord, list[MemberRecord]]:
        """Claim a place in the log; returns my record with it, and those that were there first, in order."""
        entry = record_entry(record)
        while True:
            stored = self._log.members.get(record.name)
            if stored and not (record.pod_uid and record.pod_uid == stored.pod_uid):
                raise MemberExistsError(
                    f"cannot join as {record.name!r}: a member at {stored.address} has this name; choose another"
                )
            others = [m for name, m in self._log.members.items() if name != record.name]
            position = self._log.position
            there = self._client.claim(_entry(position), entry)
            self._take(there)
            if there == entry:
                return record.joined(position), sorted(others, key=lambda m: m.incarnation)

    # -- the log ------------------------------------------------------------------------------------------

    def _append(self, entry: str) -> None:
        """At the next position that is free; what others have put before it is read on the way."""
        while True:
            there = self._client.claim(_entry(self._log.position), entry)
            self._take(there)
            if there == entry:
                return

    def _take(self, entry: str) -> None:
        """Read one entry, and tell the listener."""
        happened = self._log.read(entry)
        mine = self._record
        events: list[RecordEvent] = []
        for event in happened:
            if not isinstance(event, Drain):
                events.append(event)
            elif self._listener and mine and event.incarnation == mine.incarnation:
                self._listener.on_drain(event.request)
        if events and self._listener:
            self._view = self._log.view
            self._listener.on_view(self._view, events)
        if mine and mine.state is MemberState.DRAINING and _is_evicted(mine, events):
            self._record = None  # its time to leave is over

    def _return_record(self) -> None:
        """Somebody took me for dead."""
        if self._record and self._record.name not in self._log.members:
            self._append(record_entry(self._record))

    def _stop_watching(self) -> None:
        watch, self._watch = self._watch, None
        if watch and self._pid == os.getpid():
            watch.stop()


class _Watch:
    """A thread that looks every `interval` seconds. It ends when the store fails: one that is gone stays gone."""

    def __init__(self, name: str, interval: float, look: Callable[[], None]) -> None:
        self._interval = interval
        self._look = look
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()  # joined in stop()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._look()
            except RendezvousUnavailableError as exc:
                _log.warning("who joins and leaves from now on is not heard of any more: %s", exc)
                return


def _is_evicted(mine: MemberRecord, events: Iterable[RecordEvent]) -> bool:
    return any(
        e.record.incarnation == mine.incarnation and e.record.state is MemberState.EVICTED for e in events
    )


def _entry(position: int) -> str:
    return f"log/{position}"
