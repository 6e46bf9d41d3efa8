"""The rendezvous in etcd: one record per worker under its lease, and a watch of all of them by each."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rpcgroup.errors import JoinError, NotInitializedError, RendezvousError, UnknownWorkerError
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.kv import EtcdKeyValue
from rpcgroup.membership.etcd.lease import revoke
from rpcgroup.membership.etcd.members import MemberBook
from rpcgroup.membership.etcd.messages import (
    PUT,
    RANGE,
    TXN,
    DeleteRequest,
    Event,
    Header,
    KeyValue,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    prefix_end,
    unchanged,
)
from rpcgroup.membership.etcd.seat import Seat
from rpcgroup.membership.etcd.watch import KeyRange, Probe, Watch
from rpcgroup.membership.record import MemberRecord, MemberState, new_token
from rpcgroup.membership.rendezvous import (
    OPERATION_SECONDS,
    DrainRequest,
    GroupListener,
    GroupView,
    RecordEvent,
    RecordGone,
)

__all__ = ["EtcdRendezvous"]

_log = logging.getLogger(__name__)


class EtcdRendezvous:
    """The `Rendezvous` interface over an `EtcdClient`, which it closes."""

    def __init__(self, client: EtcdClient, keys: GroupKeys, lease_ttl: int) -> None:
        self._client = client
        self._keys = keys
        self._ttl = lease_ttl
        self._pid = os.getpid()
        self._token = new_token()  # the same for each try to join, so that one applied unseen is recognised
        self._lock = threading.Lock()  # guards _membership, _probe and that there is one of each
        self._membership: _Membership | None = None
        self._probe: Probe | None = None
        self._kv = EtcdKeyValue(client, keys, self._look_after_watches)

    def join(
        self,
        record: MemberRecord,
        *,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        listener: GroupListener,
        timeout: float,
    ) -> MemberRecord:
        membership = _Membership(self._client, self._keys, self._ttl, listener)
        with self._lock:
            if self._membership:
                raise JoinError(f"this seat has joined already, as {self._membership.seat.record.name!r}")
            self._membership = membership
        try:
            return membership.join(replace(record, token=record.token or self._token), admit, timeout)
        except BaseException:
            with self._lock:
                self._membership = None
            raise

    def update(self, **changes: object) -> MemberRecord:
        return self._joined("update").seat.change(changes, OPERATION_SECONDS)

    def leave(self, timeout: float) -> None:
        with self._lock:
            membership, self._membership = self._membership, None
        if membership and self._pid == os.getpid():
            membership.leave("", timeout)

    def view(self) -> GroupView:
        membership = self._membership
        if membership and membership.view:
            return membership.view
        book = MemberBook(self._keys)
        answer = self._range(self._keys.members)
        book.replace(answer.kvs, answer.header.revision)
        return book.view

    def request_drain(self, name: str, request: DrainRequest) -> None:
        value = json.dumps({"deadline": request.deadline, "reason": request.reason}).encode()
        put = RequestOp(request_put=PutRequest(self._keys.drain(name), value))
        while True:
            member = self._member(name)
            if member is None:
                raise UnknownWorkerError(
                    f"cannot drain {name!r}: the members are {sorted(self.view().members)}"
                )
            guard = unchanged(member.key, member.mod_revision)
            if self._client.retry(TXN, TxnRequest([guard], [put]), OPERATION_SECONDS).succeeded:
                return

    def evict(self, name: str) -> None:
        while member := self._member(name):
            if member.lease and self._mark_evicted(member):
                revoke(self._client, member.lease, OPERATION_SECONDS)
                return
            if not member.lease:  # not written by a worker: nothing else would end it
                delete = RequestOp(request_delete_range=DeleteRequest(member.key))
                guard = unchanged(member.key, member.mod_revision)
                self._client.retry(TXN, TxnRequest([guard], [delete]), OPERATION_SECONDS)

    def put_stats(self, stats: bytes) -> None:
        membership = self._membership
        if membership is None:
            return
        key = self._keys.member_stats(membership.seat.record.name)
        try:
            self._client.call(PUT, PutRequest(key, stats, membership.seat.lease_id), CALL_SECONDS)
        except RendezvousError as exc:
            _log.debug("stats not written: %s", exc)

    def stats(self) -> Mapping[str, bytes]:
        found = self._range(self._keys.stats).kvs
        return {kv.key.removeprefix(self._keys.stats).decode(): kv.value for kv in found}

    @property
    def kv(self) -> EtcdKeyValue:
        return self._kv

    def close(self) -> None:
        if self._pid != os.getpid():
            return  # a forked child: the threads and the channel are the parent's
        self._client.close()
        with self._lock:
            membership, self._membership = self._membership, None
            probe, self._probe = self._probe, None
        if membership:
            membership.stop()
        self._kv.stop()
        if probe:
            probe.stop()

    def _joined(self, what: str) -> _Membership:
        membership = self._membership
        if membership is None:
            raise NotInitializedError(f"{what}: this worker has not joined the group")
        return membership

    def _look_after_watches(self) -> None:
        """A worker's keep-alive does it; who has not joined needs a probe."""
        with self._lock:
            if self._membership or self._probe:
                return
            self._probe = Probe(self._client)
            self._probe.start()

    def _range(self, prefix: bytes) -> RangeResponse:
        return self._client.retry(RANGE, RangeRequest(prefix, prefix_end(prefix)), OPERATION_SECONDS)

    def _member(self, name: str) -> KeyValue | None:
        found = self._client.retry(RANGE, RangeRequest(self._keys.member(name)), OPERATION_SECONDS).kvs
        return found[0] if found else None

    def _mark_evicted(self, member: KeyValue) -> bool:
        """So that the others need not find out by themselves; False if the record changed meanwhile."""
        try:
            record = MemberRecord.from_json(member.value, member.create_revision)
        except RendezvousError:
            return True  # no record of this version: its lease can be revoked all the same
        value = replace(record, state=MemberState.EVICTED).to_json()
        put = RequestOp(request_put=PutRequest(member.key, value, member.lease))
        guard = unchanged(member.key, member.mod_revision)
        return self._client.retry(TXN, TxnRequest([guard], [put]), OPERATION_SECONDS).succeeded


class _Membership:
    """From `join` to `leave`: the seat, the two watches, and the listener's turns."""

    def __init__(self, client: EtcdClient, keys: GroupKeys, ttl: int, listener: GroupListener) -> None:
        self._client = client
        self._keys = keys
        self._listener = listener
        self._turn = threading.Lock()  # held while the listener is called: one call at a time
        self._book = MemberBook(keys)  # used by join, then by the member watch's thread only
        self._last_drain: bytes | None = None  # the drain watch's thread's
        self._watches: list[Watch] = []
        self.view: GroupView | None = None  # replaced as a whole before the listener is told of it
        self.seat = Seat(client, keys, ttl, self._relist)

    def join(
        self,
        record: MemberRecord,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        timeout: float,
    ) -> MemberRecord:
        entered = self.seat.enter(record, timeout)
        mine = self.seat.record
        first = self._book.replace(entered.values, entered.header.revision)
        earlier = [event.record for event in first if event.record.token != mine.token]
        try:
            admit(mine, earlier)
        except BaseException as exc:
            with contextlib.suppress(RendezvousError):
                self.seat.leave(str(exc), CALL_SECONDS)
            raise
        self._tell(first)
        self._start(entered.header, mine.name)
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
        self._watches = [
            Watch(self._client, members, sink, "rpcgroup-etcd-members", known),
            Watch(self._client, drain, drain_sink, "rpcgroup-etcd-drain", known),
        ]
        for watch in self._watches:
            watch.start()
        self.seat.start()

    def _stop_watches(self) -> None:
        for watch in self._watches:
            watch.stop()

    def _relist(self) -> None:
        """The lease was lost: so may be everything else that this process knows."""
        for watch in self._watches:
            watch.relist()

    # The member watch's thread.
    def _on_members_listed(self, values: Sequence[KeyValue], revision: int) -> None:
        self._tell(self._book.replace(values, revision))

    def _on_members_changed(self, events: Sequence[Event]) -> None:
        self._tell(self._book.apply(events))

    def _tell(self, events: Sequence[RecordEvent]) -> None:
        if not events:
            return
        self.view = view = self._book.view
        if any(self._is_mine_and_altered(event) for event in events):
            self.seat.put_back()
        with self._turn:
            try:
                self._listener.on_view(view, events)
            except Exception:
                _log.exception("the listener failed at a view of the group")

    def _is_mine_and_altered(self, event: RecordEvent) -> bool:
        if event.record.token != self.seat.record.token:
            return False
        return isinstance(event, RecordGone) or event.record.state is MemberState.EVICTED

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
