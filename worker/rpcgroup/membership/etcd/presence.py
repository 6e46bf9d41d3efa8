"""A worker's presence in its group, from `join` to `leave`: its seat, its watches, its listener's turns."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.members import MemberBook
from rpcgroup.membership.etcd.messages import Event, Header, KeyValue
from rpcgroup.membership.etcd.seat import Seat
from rpcgroup.membership.etcd.watch import KeyRange, Watch
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, GroupListener, GroupView, RecordEvent, RecordGone

__all__ = ["Presence"]

_log = logging.getLogger(__name__)


class Presence:
    """Used once: `join`, then `leave` or `stop`."""

    def __init__(
        self,
        client: EtcdClient,
        keys: GroupKeys,
        ttl: int,
        listener: GroupListener,
        on_new_lease: Callable[[], None],
    ) -> None:
        self._client = client
        self._keys = keys
        self._listener = listener
        self._turn = threading.Lock()  # held while the listener is called: one call at a time
        self._book = MemberBook(keys)  # used by join, then by the member watch's thread only
        self._last_drain: bytes | None = None  # the drain watch's thread's
        self._member_watch: Watch | None = None
        self._drain_watch: Watch | None = None
        self.view: GroupView | None = None  # replaced as a whole before the listener is told of it
        self._on_new_lease = on_new_lease
        self.seat = Seat(client, keys, ttl, self._look_again)

    def join(
        self,
        record: MemberRecord,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        timeout: float,
    ) -> MemberRecord:
        entry = self.seat.enter(record, timeout)
        mine = entry.record
        first = self._book.replace(entry.values, entry.header.revision)
        try:
            admit(mine, entry.earlier)
        except BaseException as exc:
            with contextlib.suppress(RendezvousError):
                self.seat.leave(str(exc), CALL_SECONDS)
            raise
        self._tell(first)
        self._start(entry.header, mine.name)
        return mine

    def leave(self, reason: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._stop_watches()
        if not self.seat.stop(timeout):
            _log.warning("%r could not say farewell: etcd does not answer", self.seat.record.name)
            return
        try:
            self.seat.leave(reason, max(deadline - time.monotonic(), 0.1))
        except RendezvousError as exc:
            _log.warning("%r could not say farewell: %s", self.seat.record.name, exc)

    def stop(self) -> None:
        self._stop_watches()
        self.seat.stop()

    def _start(self, known: Header, name: str) -> None:
        members = KeyRange.of_prefix(self._keys.members)
        drain = KeyRange(self._keys.drain(name))
        sink = _Sink(self._on_members_listed, self._on_members_changed)
        drain_sink = _Sink(self._on_drain_listed, self._on_drain_changed)
        self._member_watch = Watch(self._client, members, sink, "rpcgroup-etcd-members", known)
        self._drain_watch = Watch(self._client, drain, drain_sink, "rpcgroup-etcd-drain", known)
        self._member_watch.start()
        self._drain_watch.start()
        self.seat.start()

    def _stop_watches(self) -> None:
        for watch in (self._member_watch, self._drain_watch):
            if watch:
                watch.stop()

    def _look_again(self) -> None:
        """The lease was lost, and so may be the whole store that this process knows.

        My record, which is written next, is the news after which the members are compared: by then the
        farewells of the time between have been told as such, where the store still has them.
        """
        assert self._member_watch and self._drain_watch
        self._member_watch.verify()
        self._drain_watch.relist()
        self._on_new_lease()

    # The member watch's thread.
    def _on_members_listed(self, values: Sequence[KeyValue], revision: int) -> None:
        self._tell(self._book.replace(values, revision))

    def _on_members_changed(self, events: Sequence[Event]) -> None:
        self._tell(self._book.apply(events))

    def _tell(self, events: Sequence[RecordEvent]) -> None:
        if not events:
            return
        self.view = view = self._book.view
        for event in events:
            if event.record.token == self.seat.record.token:
                self._look_at_mine(event)
        with self._turn:
            try:
                self._listener.on_view(view, events)
            except Exception:
                _log.exception("the listener failed at a view of the group")

    def _look_at_mine(self, event: RecordEvent) -> None:
        if isinstance(event, RecordGone):
            self.seat.put_back()
        elif event.record.state is MemberState.EVICTED:
            self.seat.was_marked()

    # The drain watch's thread.
    def _on_drain_listed(self, values: Sequence[KeyValue], revision: int) -> None:
        for kv in values:
            self._ask_to_leave(kv.value)

    def _on_drain_changed(self, events: Sequence[Event]) -> None:
        for event in events:
            if not event.is_delete:
                self._ask_to_leave(event.kv.value)

    def _ask_to_leave(self, value: bytes) -> None:
        if value == self._last_drain:
            return
        self._last_drain = value
        try:
            raw = json.loads(value)
            request = DrainRequest(float(raw["deadline"]), str(raw.get("reason", "")))
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            _log.warning("a drain request that cannot be read is ignored: %r: %s", value[:80], exc)
            return
        with self._turn:
            try:
                self._listener.on_drain(request)
            except Exception:
                _log.exception("the listener failed at a drain request")


@dataclass(frozen=True)
class _Sink:
    """The `WatchSink` interface made of two functions."""

    on_snapshot: Callable[[Sequence[KeyValue], int], None]
    on_events: Callable[[Sequence[Event]], None]
