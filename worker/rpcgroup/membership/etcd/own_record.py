"""A worker's record in etcd: every write of it is a transaction guarded by the record's last revision."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rpcgroup.errors import MemberExistsError, RendezvousError
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.lease import Lease, revoke, time_to_live
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
from rpcgroup.membership.record import MemberRecord

__all__ = ["Entry", "OwnRecord", "left"]


@dataclass(frozen=True)
class Entry:
    """My record as stored, those that were there first, all values (mine too) and the answer's header."""

    record: MemberRecord
    earlier: list[MemberRecord]
    values: list[KeyValue]
    header: Header


class OwnRecord:
    """The record under one name, bound to `lease`. Not thread-safe: its seat owns it.

    An outcome that is unknown is found out by the record's token: who reads its own token has written.
    """

    def __init__(self, client: EtcdClient, keys: GroupKeys, lease: Lease) -> None:
        self._client = client
        self._keys = keys
        self._lease = lease
        self._mod_revision = 0

    def create(self, record: MemberRecord, deadline: float) -> Entry:
        """One transaction: put the record if there is none of its name, and read all records.

        The worker of an earlier pod of this name is waited for: it is about to be evicted.

        Raises `MemberExistsError`, `RendezvousUnavailableError`.
        """
        key = self._keys.member(record.name)
        while True:
            answer = self._put_new(record, deadline)
            values = answer.responses[-1].response_range.kvs
            stored = next((kv for kv in values if kv.key == key), None)
            if stored and (answer.succeeded or _token(stored) == record.token):
                break
            if stored and _follows(record, stored) and time.monotonic() < deadline:
                self._client.pause()
            elif stored:
                self._clear_the_way(record, stored, deadline)
        self._mod_revision = stored.mod_revision
        earlier = _created_before(stored, values)
        mine = record.joined(_past_the_old_store(stored.create_revision, earlier))
        if not answer.succeeded or mine.incarnation != stored.create_revision:
            self.write(mine, deadline)
        stored.value = mine.to_json()
        return Entry(mine, earlier, values, answer.header)

    def write(self, record: MemberRecord, deadline: float) -> None:
        """Make the stored record this one. Raises `MemberExistsError` where the name is another's."""
        key = self._keys.member(record.name)
        put = RequestOp(request_put=PutRequest(key, record.to_json(), self._lease.id))
        read = RequestOp(request_range=RangeRequest(key))
        while True:
            request = TxnRequest([unchanged(key, self._mod_revision)], [put], [read])
            answer = self._client.retry(TXN, request, left(deadline))
            if answer.succeeded:
                self._mod_revision = answer.header.revision
                return
            found = answer.responses[0].response_range.kvs
            if found and _token(found[0]) != record.token:
                raise MemberExistsError(f"another worker has taken the name {record.name!r}")
            self._mod_revision = found[0].mod_revision if found else 0

    def delete(self, name: str, deadline: float) -> None:
        """With what was asked of it; nothing where the record is not as it was last written."""
        mine = unchanged(self._keys.member(name), self._mod_revision)
        keys = (self._keys.member(name), self._keys.drain(name))
        self._client.retry(TXN, TxnRequest([mine], [_delete(key) for key in keys]), left(deadline))

    def forget(self) -> None:
        """The store may be another one by now, where revisions of the old one mean nothing."""
        self._mod_revision = 0

    def _put_new(self, record: MemberRecord, deadline: float) -> TxnResponse:
        """What was asked of an earlier worker of my name is not asked of me: its drain request goes."""
        key, members = self._keys.member(record.name), self._keys.members
        put = RequestOp(request_put=PutRequest(key, record.to_json(), self._lease.id))
        read = RequestOp(request_range=RangeRequest(members, prefix_end(members)))
        request = TxnRequest([unchanged(key, 0)], [put, _delete(self._keys.drain(record.name)), read], [read])
        return self._client.retry(TXN, request, left(deadline))

    def _clear_the_way(self, record: MemberRecord, stored: KeyValue, deadline: float) -> None:
        """A record of my name is stale when its lease is gone, or when it is of an earlier life of my pod."""
        other = _parse(stored)
        mine_before = other is not None and bool(record.pod_uid) and other.pod_uid == record.pod_uid
        seconds = time_to_live(self._client, stored.lease, left(deadline)) if stored.lease else -1
        if seconds > 0 and not mine_before:
            where = f"at {other.address or 'an unknown address'}" if other else "that cannot be read"
            raise MemberExistsError(
                f"cannot join as {record.name!r}: the group has a member of this name {where}; choose "
                f"another name or, if that worker is dead, evict it or wait {seconds} s for its lease to end"
            )
        if seconds > 0:
            revoke(self._client, stored.lease, left(deadline))
        delete = TxnRequest([unchanged(stored.key, stored.mod_revision)], [_delete(stored.key)])
        self._client.retry(TXN, delete, left(deadline))


def left(deadline: float) -> float:
    """Seconds until a `time.monotonic()`; never so few that a call could not be made."""
    return max(deadline - time.monotonic(), 0.05)


def _created_before(mine: KeyValue, values: list[KeyValue]) -> list[MemberRecord]:
    """More than those may be among the values where the answer to my first try was lost."""
    records = (_parse(kv) for kv in values if kv.create_revision < mine.create_revision)
    return sorted((record for record in records if record), key=lambda record: record.incarnation)


def _past_the_old_store(revision: int, earlier: list[MemberRecord]) -> int:
    """My incarnation: the revision, but where revisions began anew under members of a lost store."""
    return max([revision, *(record.incarnation + 1 for record in earlier)])


def _delete(key: bytes) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRequest(key))


def _parse(stored: KeyValue) -> MemberRecord | None:
    try:
        return MemberRecord.from_json(stored.value, stored.create_revision)
    except RendezvousError:
        return None


def _follows(record: MemberRecord, stored: KeyValue) -> bool:
    other = _parse(stored)
    return other is not None and record.follows(other)


def _token(stored: KeyValue) -> str | None:
    record = _parse(stored)
    return record.token if record else None
