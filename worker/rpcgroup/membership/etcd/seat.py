"""One worker's record in etcd and the lease it hangs on.

After `enter` one thread owns both: it keeps the lease, and whenever the record is not there as it should be
(a change, a lost lease, a hasty eviction, an empty store) it writes it, guarded by its last revision.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rpcgroup.errors import (
    MemberExistsError,
    RendezvousError,
    RendezvousUnavailableError,
)
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.lease import Lease, is_lease_gone, revoke, time_to_live
from rpcgroup.membership.etcd.messages import (
    TXN,
    DeleteRequest,
    Header,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
    prefix_end,
    unchanged,
)
from rpcgroup.membership.record import MemberRecord, MemberState

__all__ = ["Entered", "Seat"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entered:
    """The moment of entry: all records then, mine included, and the answer's header."""

    values: list[KeyValue]
    header: Header


class Seat:
    """`on_new_lease` is called by the seat's thread when it replaced a lost lease, before it writes again."""

    def __init__(
        self, client: EtcdClient, keys: GroupKeys, ttl: int, on_new_lease: Callable[[], None]
    ) -> None:
        self._client = client
        self._keys = keys
        self._lease = Lease(client, ttl)
        self._on_new_lease = on_new_lease
        self._mod_revision = 0  # of my record as last heard of; the owning thread's, as the lease is
        self._changed = threading.Condition()
        # _changed guards all of the following.
        self._record = MemberRecord(name="")
        self._wanted = 0  # counts what _record should be; _written, what it is
        self._written = 0
        self._superseded: MemberExistsError | None = None
        self._trouble: RendezvousError | None = None  # why the last write or keep-alive failed
        self._stopping = False
        self._thread: threading.Thread | None = None

    @property
    def record(self) -> MemberRecord:
        with self._changed:
            return self._record

    @property
    def lease_id(self) -> int:
        return self._lease.id

    def enter(self, record: MemberRecord, seconds: float) -> Entered:
        """One transaction: put the record if there is none of its name, and read all records.

        Raises `MemberExistsError`, `RendezvousUnavailableError`.
        """
        deadline = time.monotonic() + seconds
        self._lease.grant(seconds)
        try:
            return self._enter(record, deadline)
        except MemberExistsError:
            revoke(self._client, self._lease.id, _left(deadline))
            raise

    def _enter(self, record: MemberRecord, deadline: float) -> Entered:
        while True:
            answer = self._put_new(record, deadline)
            values = answer.responses[-1].response_range.kvs
            key = self._keys.member(record.name)
            stored = next((kv for kv in values if kv.key == key), None)
            if stored and (answer.succeeded or _token(stored) == record.token):
                break
            if stored:
                self._clear_the_way(record, stored, deadline)
        self._mod_revision = stored.mod_revision
        self._record = record.joined(stored.create_revision)
        if not answer.succeeded:
            self._write(_left(deadline))  # an earlier try was applied unseen, perhaps under another lease
        self._step_past_the_old_store(record, values, deadline)
        stored.value = self._record.to_json()
        return Entered(values, answer.header)

    def start(self) -> None:
        name = f"rpcgroup-etcd-seat-{self._record.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)  # joined in stop()
        self._thread.start()

    def change(self, changes: dict[str, Any], seconds: float) -> MemberRecord:
        """Raises `RendezvousUnavailableError`, and the change is written later; `MemberExistsError`."""
        with self._changed:
            self._record = record = replace(self._record, **changes)
            self._wanted += 1
            number = self._wanted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._written >= number or self._superseded, seconds)
            if self._superseded:
                raise self._superseded
            if self._written < number:
                what = f"the change of {', '.join(changes)} is pending: {self._trouble}"
                raise self._client.unavailable(seconds, what)
        return record

    def put_back(self) -> None:
        """My record was seen to go or to be altered: write it again."""
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()

    def stop(self, seconds: float | None = None) -> bool:
        """End the thread; the record stays as it is. False where it is still in a call after `seconds`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def leave(self, reason: str, seconds: float) -> None:
        """After `stop`: say farewell, delete the record and what is under the lease.

        Raises `RendezvousUnavailableError`; the lease ends by itself then.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            self._record = replace(self._record, state=MemberState.LEAVING, reason=reason)
        try:
            self._say_farewell(deadline)
        except MemberExistsError:
            pass  # the record is another's: nothing of mine to take back
        revoke(self._client, self._lease.id, _left(deadline))

    def _say_farewell(self, deadline: float) -> None:
        try:
            self._write(_left(deadline))
        except RendezvousError as exc:
            if not is_lease_gone(exc):
                raise
            self._lease.grant(_left(deadline))
            self._write(_left(deadline))
        name = self._record.name
        mine = unchanged(self._keys.member(name), self._mod_revision)
        delete = [_delete(self._keys.member(name)), _delete(self._keys.drain(name))]
        self._client.retry(TXN, TxnRequest([mine], delete), _left(deadline))

    # Entering.
    def _put_new(self, record: MemberRecord, deadline: float) -> TxnResponse:
        """What was asked of an earlier worker of my name is not asked of me: its drain request goes."""
        key, members = self._keys.member(record.name), self._keys.members
        put = RequestOp(request_put=PutRequest(key, record.to_json(), self._lease.id))
        read = RequestOp(request_range=RangeRequest(members, prefix_end(members)))
        request = TxnRequest([unchanged(key, 0)], [put, _delete(self._keys.drain(record.name)), read], [read])
        return self._client.retry(TXN, request, _left(deadline))

    def _clear_the_way(self, record: MemberRecord, stored: KeyValue, deadline: float) -> None:
        """A record of my name is stale when its lease is gone, or when it is of an earlier life of my pod."""
        other = _parse(stored)
        mine_before = other is not None and bool(record.pod_uid) and other.pod_uid == record.pod_uid
        left = time_to_live(self._client, stored.lease, _left(deadline)) if stored.lease else -1
        if left > 0 and not mine_before:
            where = f"at {other.address or 'an unknown address'}" if other else "that cannot be read"
            raise MemberExistsError(
                f"cannot join as {record.name!r}: the group has a member of this name {where}; choose "
                f"another name or, if that worker is dead, evict it or wait {left} s for its lease to end"
            )
        if left > 0:
            revoke(self._client, stored.lease, _left(deadline))
        delete = TxnRequest([unchanged(stored.key, stored.mod_revision)], [_delete(stored.key)])
        self._client.retry(TXN, delete, _left(deadline))

    def _step_past_the_old_store(self, record: MemberRecord, values: list[KeyValue], deadline: float) -> None:
        """Revisions may have begun anew under members of a lost store: my incarnation must not be theirs."""
        others = [m.incarnation for m in map(_parse, values) if m and m.token != record.token]
        highest = max(others, default=0)
        if highest >= self._record.incarnation:
            self._record = record.joined(highest + 1)
            self._write(_left(deadline))

    # The seat's thread.
    def _run(self) -> None:
        due = time.monotonic() + self._lease.ttl / 3
        while self._wait_for_work(due):
            try:
                if time.monotonic() >= due:
                    if not self._lease.keep_alive():
                        self._renew()
                    due = time.monotonic() + self._lease.ttl / 3
                self._write_what_is_wanted()
            except MemberExistsError as exc:
                self._give_up(exc)
            except RendezvousUnavailableError as exc:
                due = 0.0  # whatever failed, the lease may be gone
                self._note_trouble(exc)
            except RendezvousError as exc:
                _log.error("%s; trying on", exc)
                self._note_trouble(exc)

    def _wait_for_work(self, due: float) -> bool:
        """Until something is to be written or the lease to be kept; False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._is_wanting(), max(due - time.monotonic(), 0)
            )
            return not self._stopping

    def _is_wanting(self) -> bool:
        return self._written < self._wanted and self._superseded is None

    def _renew(self) -> None:
        """A new lease, under which the record is to be written again."""
        _log.warning("the lease of %r is gone; putting its record back", self._record.name)
        self._lease.grant(CALL_SECONDS)
        self._on_new_lease()
        self.put_back()

    def _note_trouble(self, exc: RendezvousError) -> None:
        with self._changed:
            self._trouble = exc
        self._client.pause()

    def _write_what_is_wanted(self) -> None:
        with self._changed:
            if not self._is_wanting():
                return
            number = self._wanted
        try:
            self._write(CALL_SECONDS)
        except RendezvousError as exc:
            if not is_lease_gone(exc):
                raise
            self._renew()
            return  # the thread comes back at once: there is more that is wanted
        with self._changed:
            self._written = number
            self._changed.notify_all()

    def _give_up(self, exc: MemberExistsError) -> None:
        """For good: whoever has the name now is the member, and two would only fight over the record."""
        _log.error("%s; this worker is no member any more", exc)
        with self._changed:
            self._superseded = exc
            self._changed.notify_all()

    def _write(self, seconds: float) -> None:
        """Make the stored record what it should be. Raises `MemberExistsError`: the name is another's."""
        deadline = time.monotonic() + seconds
        while True:
            record = self.record
            key = self._keys.member(record.name)
            put = RequestOp(request_put=PutRequest(key, record.to_json(), self._lease.id))
            read = RequestOp(request_range=RangeRequest(key))
            request = TxnRequest([unchanged(key, self._mod_revision)], [put], [read])
            answer = self._client.retry(TXN, request, _left(deadline))
            if answer.succeeded:
                self._mod_revision = answer.header.revision
                return
            found = answer.responses[0].response_range.kvs
            if found and _token(found[0]) != record.token:
                raise MemberExistsError(f"another worker has taken the name {record.name!r}")
            self._mod_revision = found[0].mod_revision if found else 0


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.05)


def _delete(key: bytes) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRequest(key))


def _parse(stored: KeyValue) -> MemberRecord | None:
    try:
        return MemberRecord.from_json(stored.value, stored.create_revision)
    except RendezvousError:
        return None


def _token(stored: KeyValue) -> str | None:
    record = _parse(stored)
    return record.token if record else None
