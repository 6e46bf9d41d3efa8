"""What is asked of a group from outside of it: that a member leaves or counts as dead, that its keys go."""

from __future__ import annotations

import json
from dataclasses import replace

from rpcgroup.errors import RendezvousError, UnknownWorkerError
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.lease import revoke
from rpcgroup.membership.etcd.messages import (
    DELETE,
    RANGE,
    TXN,
    DeleteRequest,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    prefix_end,
    unchanged,
)
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import OPERATION_SECONDS, DrainRequest

__all__ = ["Administrator"]


class Administrator:
    """Of any group that the client's user may write to. Each request can be repeated; each raises
    `RendezvousUnavailableError` where etcd does not answer, `EtcdRefusedError` where it refuses."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    def drain(self, group: GroupKeys, name: str, request: DrainRequest) -> None:
        """Ask a member to leave. Raises `UnknownWorkerError` where there is none of that name."""
        value = json.dumps({"deadline": request.deadline, "reason": request.reason}).encode()
        put = RequestOp(request_put=PutRequest(group.drain(name), value))
        while True:
            member = self._member(group, name)
            if member is None:
                raise UnknownWorkerError(f"cannot drain {name!r}: the members are {self._names(group)}")
            if self._write(member, put):
                return

    def evict(self, group: GroupKeys, name: str) -> None:
        """End a member's lease, and say first that this is what happened; nothing where it is gone."""
        while member := self._member(group, name):
            if member.lease and self._mark_evicted(member):
                revoke(self._client, member.lease, OPERATION_SECONDS)
                return
            if not member.lease:  # not written by a worker: nothing else would end it
                self._write(member, RequestOp(request_delete_range=DeleteRequest(member.key)))

    def suspect(self, group: GroupKeys, member: MemberRecord) -> None:
        """Delete the record of a member that looks dead: if it lives, it puts it back."""
        stored = self._member(group, member.name)
        if stored and _incarnation(stored) == member.incarnation:
            self._write(stored, RequestOp(request_delete_range=DeleteRequest(stored.key)))

    def purge(self, group: GroupKeys) -> None:
        """Delete everything of a group that is no more."""
        for prefix in group.prefixes:
            request = DeleteRequest(prefix, prefix_end(prefix))
            self._client.retry(DELETE, request, OPERATION_SECONDS)

    def _names(self, group: GroupKeys) -> list[str]:
        request = RangeRequest(group.members, prefix_end(group.members), keys_only=True)
        found = self._client.retry(RANGE, request, OPERATION_SECONDS).kvs
        return sorted(group.member_name(kv.key) for kv in found)

    def _member(self, group: GroupKeys, name: str) -> KeyValue | None:
        found = self._client.retry(RANGE, RangeRequest(group.member(name)), OPERATION_SECONDS).kvs
        return found[0] if found else None

    def _mark_evicted(self, member: KeyValue) -> bool:
        """So that the others need not find out by themselves; False if the record changed meanwhile."""
        try:
            record = MemberRecord.from_json(member.value, member.create_revision)
        except RendezvousError:
            return True  # no record of this version: its lease can be revoked all the same
        value = replace(record, state=MemberState.EVICTED).to_json()
        return self._write(member, RequestOp(request_put=PutRequest(member.key, value, member.lease)))

    def _write(self, member: KeyValue, write: RequestOp) -> bool:
        """False where the member's record has changed since it was read."""
        guard = unchanged(member.key, member.mod_revision)
        return self._client.retry(TXN, TxnRequest([guard], [write]), OPERATION_SECONDS).succeeded


def _incarnation(member: KeyValue) -> int | None:
    """None for what is no record of this version."""
    try:
        return MemberRecord.from_json(member.value, member.create_revision).incarnation
    except RendezvousError:
        return None
