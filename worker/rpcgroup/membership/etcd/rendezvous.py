"""The rendezvous in etcd: one record per worker under its lease, and a watch of all of them by each."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
    KeyValue,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
    prefix_end,
    unchanged,
)
from rpcgroup.membership.etcd.presence import Presence
from rpcgroup.membership.etcd.watch import Probe
from rpcgroup.membership.record import MemberRecord, MemberState, new_token
from rpcgroup.membership.rendezvous import (
    OPERATION_SECONDS,
    DrainRequest,
    GroupListener,
    GroupView,
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
        self._lock = threading.Lock()  # guards _presence, _probe and that there is one of each
        self._presence: Presence | None = None
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
        presence = Presence(self._client, self._keys, self._ttl, listener, self._kv.relist)
        with self._lock:
            if self._presence:
                raise JoinError(f"this seat has joined already, as {self._presence.seat.record.name!r}")
            self._presence = presence
        try:
            return presence.join(replace(record, token=record.token or self._token), admit, timeout)
        except BaseException:
            with self._lock:
                self._presence = None
            raise

    def update(self, **changes: object) -> MemberRecord:
        return self._joined("update").seat.change(changes, OPERATION_SECONDS)

    def leave(self, timeout: float) -> None:
        with self._lock:
            presence, self._presence = self._presence, None
        if presence and self._pid == os.getpid():
            presence.leave("", timeout)

    def view(self) -> GroupView:
        presence = self._presence
        if presence and presence.view:
            return presence.view
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
        presence = self._presence
        if presence is None:
            return
        key = self._keys.member_stats(presence.seat.record.name)
        try:
            self._client.call(PUT, PutRequest(key, stats, presence.seat.lease_id), CALL_SECONDS)
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
            presence, self._presence = self._presence, None
            probe, self._probe = self._probe, None
        if presence:
            presence.stop()
        self._kv.stop()
        if probe:
            probe.stop()

    def _joined(self, what: str) -> Presence:
        presence = self._presence
        if presence is None:
            raise NotInitializedError(f"{what}: this worker has not joined the group")
        return presence

    def _look_after_watches(self) -> None:
        """A worker's keep-alive does it; who has not joined needs a probe."""
        with self._lock:
            if self._presence or self._probe:
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
