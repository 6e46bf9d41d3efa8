"""A meeting place inside one process: a real implementation for tests and single-process groups.

It behaves as etcd does, leases included; a lease ends when a test says so (`MemoryGroup.expire`), and the
place is away when a test says so (`MemoryGroup.outage`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rpcgroup.errors import (
    JoinError,
    MemberExistsError,
    NotInitializedError,
    RendezvousUnavailableError,
    UnknownWorkerError,
)
from rpcgroup.membership.record import MemberRecord, MemberState, new_token
from rpcgroup.membership.rendezvous import (
    DrainRequest,
    GroupListener,
    GroupView,
    KeyValue,
    RecordEvent,
    RecordGone,
    RecordPut,
)

__all__ = ["MemoryGroup", "MemoryRendezvous"]


class MemoryGroup:
    """What etcd is for one group: the records, the small values, and who wants to hear of them.

    `MemoryGroup.named(...)` gives every caller in this process the same one.
    """

    _groups: dict[tuple[str, str, str], MemoryGroup] = {}  # noqa: RUF012
    _groups_lock = threading.Lock()  # guards _groups

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        """Guards everything below and the seats' own records; notified when the outage ends."""
        self.away = False
        self.members: dict[str, MemberRecord] = {}
        self.seats: list[MemoryRendezvous] = []
        self.stats: dict[str, bytes] = {}
        self.values: dict[str, bytes] = {}
        self.value_feeds: list[tuple[str, _Feed, Callable[[str, bytes | None], None]]] = []
        self.epoch = 0
        self._revision = 0

    @classmethod
    def named(cls, place: str, namespace: str, group: str) -> MemoryGroup:
        with cls._groups_lock:
            return cls._groups.setdefault((place, namespace, group), cls())

    def expire(self, name: str) -> None:
        """End a member's lease. Its record goes; a worker that lives puts it back once the place is there."""
        with self.changed:
            self.stats.pop(name, None)
            self.remove(name)
            self._return_records()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Nothing is answered and nothing is told until the end of the block."""
        with self.changed:
            self.away = True
        try:
            yield
        finally:
            with self.changed:
                self.away = False
                self._return_records()
                self.changed.notify_all()

    def wait_until_there(self, seconds: float) -> None:
        """Call with `changed` held. Raises `RendezvousUnavailableError`."""
        if not self.changed.wait_for(lambda: not self.away, seconds):
            raise RendezvousUnavailableError(f"the memory rendezvous is away (waited {seconds:.1f} s)")

    # All of the following with `changed` held.
    def put(self, record: MemberRecord) -> MemberRecord:
        self._revision += 1
        stored = record.joined(self._revision)
        self.members[stored.name] = stored
        self._tell_members(RecordPut(stored))
        return stored

    def remove(self, name: str) -> None:
        if name in self.members:
            self._revision += 1
            self._tell_members(RecordGone(self.members.pop(name)))

    def view(self) -> GroupView:
        return GroupView(self.epoch, dict(self.members))

    def set_value(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value
        for prefix, feed, callback in self.value_feeds:
            if key.startswith(prefix):
                feed.push(partial(callback, key, value))

    def _tell_members(self, event: RecordEvent) -> None:
        self.epoch = self._revision
        for seat in self.seats:
            seat.tell(self.view(), [event])

    def _return_records(self) -> None:
        if self.away:
            return
        for seat in list(self.seats):
            wanted = seat.record
            stored = self.members.get(wanted.name) if wanted else None
            if wanted and stored != wanted and (stored is None or stored.token == wanted.token):
                self.put(wanted)


class _Feed:
    """One thread that makes calls in order. Its queue is bounded by what a test does in one group."""

    def __init__(self, name: str, group: MemoryGroup) -> None:
        self._group = group
        self._calls: deque[Callable[[], None]] = deque()  # guarded by group.changed
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()  # joined in close()

    def push(self, call: Callable[[], None]) -> None:
        with self._group.changed:
            self._calls.append(call)
            self._group.changed.notify_all()

    def close(self) -> None:
        """May be called by the feed's own thread, which then ends after its present call."""
        with self._group.changed:
            self._closed = True
            self._group.changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._group.changed:
                self._group.changed.wait_for(lambda: self._closed or (self._calls and not self._group.away))
                if self._closed:
                    return
                call = self._calls.popleft()
            call()


class MemoryRendezvous:
    """One seat at a `MemoryGroup`; the `Rendezvous` interface."""

    has_leases = True

    def __init__(self, group: MemoryGroup) -> None:
        self._group = group
        self._view: GroupView | None = None  # written by the feed's thread only
        self._listener: GroupListener | None = None
        self._feed: _Feed | None = None
        self._kv = _MemoryKeyValue(group)
        self.record: MemberRecord | None = None  # guarded by group.changed, as the feed is

    def join(
        self,
        record: MemberRecord,
        *,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        listener: GroupListener,
        timeout: float,
    ) -> MemberRecord:
        deadline = time.monotonic() + timeout
        group, told = self._group, threading.Event()
        with group.changed:
            if self.record:
                raise JoinError(f"this seat has joined already, as {self.record.name!r}")
            group.wait_until_there(timeout)
            group.changed.wait_for(
                lambda: not self._predecessor(record), max(0.0, deadline - time.monotonic())
            )
            self._clear_name(record)
            earlier = sorted(group.members.values(), key=lambda m: m.incarnation)
            self.record = mine = group.put(replace(record, token=record.token or new_token()))
            self._listener, self._feed = listener, _Feed(f"rpcgroup-memory-{mine.name}", group)
            self.tell(group.view(), [RecordPut(m) for m in [*earlier, mine]])
            self._feed.push(told.set)
            group.seats.append(self)
        try:
            admit(mine, earlier)
        except BaseException as exc:
            self._farewell(str(exc))
            raise
        self._feed.start()
        if not told.wait(deadline - time.monotonic()):
            reason = f"the memory rendezvous went away while {mine.name!r} joined"
            self._farewell(reason)
            raise RendezvousUnavailableError(reason)
        return mine

    def update(self, **changes: Any) -> MemberRecord:
        group = self._group
        with group.changed:
            if self.record is None:
                raise NotInitializedError("update: this worker has not joined the group")
            self.record = replace(self.record, **changes)
            if group.away:
                group.wait_until_there(0)
            stored = group.members.get(self.record.name)
            if stored and stored.token != self.record.token:
                raise MemberExistsError(
                    f"another worker has taken the name {stored.name!r} ({stored.address})"
                )
            self.record = group.put(self.record)
            return self.record

    def leave(self, timeout: float) -> None:
        with self._group.changed:
            self._group.changed.wait_for(lambda: not self._group.away, timeout)
        self._farewell("")

    def view(self) -> GroupView:
        if self._view is not None:
            return self._view
        with self._there() as group:
            return group.view()

    def refresh(self) -> None:
        """Everything is told at once."""

    def request_drain(self, name: str, request: DrainRequest) -> None:
        with self._there() as group:
            if name not in group.members:
                raise UnknownWorkerError(f"cannot drain {name!r}: the members are {sorted(group.members)}")
            for seat in group.seats:
                if seat.record and seat.record.name == name:
                    seat.ask_to_leave(request)

    def evict(self, name: str) -> None:
        with self._there() as group:
            if name in group.members:
                group.put(replace(group.members[name], state=MemberState.EVICTED))
                for seat in group.seats:
                    seat.dismiss(name)
                group.expire(name)

    def suspect(self, member: MemberRecord) -> None:
        with self._there() as group:
            stored = group.members.get(member.name)
            if stored and stored.incarnation == member.incarnation:
                group.expire(member.name)

    def put_stats(self, stats: bytes) -> None:
        with self._group.changed:
            if self.record and not self._group.away:
                self._group.stats[self.record.name] = stats

    def stats(self) -> Mapping[str, bytes]:
        with self._there() as group:
            return dict(group.stats)

    @property
    def kv(self) -> KeyValue:
        return self._kv

    def close(self) -> None:
        self._stand_up()
        self._kv.close()

    # Called by the group, with its lock held.
    def tell(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
        def call() -> None:
            assert self._listener
            self._view = view
            self._listener.on_view(view, events)

        if self._feed:
            self._feed.push(call)

    def dismiss(self, name: str) -> None:
        """Who is evicted while it leaves does not come back."""
        if self.record and self.record.name == name and self.record.state is MemberState.DRAINING:
            self.record = None

    def ask_to_leave(self, request: DrainRequest) -> None:
        listener = self._listener
        if listener and self._feed:
            self._feed.push(lambda: listener.on_drain(request))

    def _predecessor(self, record: MemberRecord) -> bool:
        stored = self._group.members.get(record.name)
        return stored is not None and record.follows(stored)

    def _clear_name(self, record: MemberRecord) -> None:
        """A record of my name is in the way, unless it is from an earlier life of my own pod."""
        stored = self._group.members.get(record.name)
        if stored is None:
            return
        if not record.pod_uid or stored.pod_uid != record.pod_uid:
            raise MemberExistsError(
                f"cannot join as {record.name!r}: a member at {stored.address} has this name; "
                "choose another, or wait until its lease ends"
            )
        self._group.stats.pop(record.name, None)
        self._group.remove(record.name)

    def _farewell(self, reason: str) -> None:
        group = self._group
        with group.changed:
            mine, stored = self.record, group.members.get(self.record.name) if self.record else None
            if mine and stored and stored.token == mine.token and not group.away:
                group.put(replace(mine, state=MemberState.LEAVING, reason=reason))
                group.stats.pop(mine.name, None)
                group.remove(mine.name)
        self._stand_up()

    def _stand_up(self) -> None:
        """Hear and keep up nothing more."""
        with self._group.changed:
            feed, self._feed, self.record = self._feed, None, None
            if self in self._group.seats:
                self._group.seats.remove(self)
        if feed:
            feed.close()

    @contextmanager
    def _there(self) -> Iterator[MemoryGroup]:
        with self._group.changed:
            self._group.wait_until_there(0)
            yield self._group


@dataclass
class _MemoryKeyValue:
    """The `KeyValue` interface."""

    _group: MemoryGroup

    def __post_init__(self) -> None:
        self._feeds: list[_Feed] = []

    def get(self, key: str) -> bytes | None:
        with self._group.changed:
            self._group.wait_until_there(0)
            return self._group.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        with self._group.changed:
            self._group.wait_until_there(0)
            self._group.set_value(key, value)

    def delete(self, key: str) -> bool:
        with self._group.changed:
            self._group.wait_until_there(0)
            there = key in self._group.values
            if there:
                self._group.set_value(key, None)
            return there

    def watch(self, prefix: str, callback: Callable[[str, bytes | None], None]) -> Callable[[], None]:
        feed = _Feed("rpcgroup-memory-kv", self._group)
        with self._group.changed:
            for key, value in sorted(self._group.values.items()):
                if key.startswith(prefix):
                    feed.push(partial(callback, key, value))
            entry = (prefix, feed, callback)
            self._group.value_feeds.append(entry)
            self._feeds.append(feed)
        feed.start()

        def stop() -> None:
            with self._group.changed:
                if entry in self._group.value_feeds:
                    self._group.value_feeds.remove(entry)
            feed.close()

        return stop

    def close(self) -> None:
        with self._group.changed:
            feeds, self._feeds = self._feeds, []
            self._group.value_feeds = [e for e in self._group.value_feeds if e[1] not in feeds]
        for feed in feeds:
            feed.close()
