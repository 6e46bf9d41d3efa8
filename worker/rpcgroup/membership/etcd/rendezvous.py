"""The rendezvous in etcd: one record per worker under its lease, and a watch of all of them by each."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rpcgroup.errors import JoinError, NotInitializedError, RendezvousError
from rpcgroup.membership.etcd.administrator import Administrator
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.kv import EtcdKeyValue
from rpcgroup.membership.etcd.members import MemberBook
from rpcgroup.membership.etcd.messages import (
    PUT,
    RANGE,
    PutRequest,
    RangeRequest,
    RangeResponse,
    prefix_end,
)
from rpcgroup.membership.etcd.presence import Presence
from rpcgroup.membership.etcd.watch import Probe
from rpcgroup.membership.record import MemberRecord, new_token
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

    has_leases = True

    def __init__(self, client: EtcdClient, keys: GroupKeys, lease_ttl: int) -> None:
        self._client = client
        self._keys = keys
        self._ttl = lease_ttl
        self._pid = os.getpid()
        self._token = new_token()  # the same for each try to join, so that one applied unseen is recognised
        self._lock = threading.Lock()  # guards _presence, _probe and that there is one of each
        self._presence: Presence | None = None
        self._probe: Probe | None = None
        self._administrator = Administrator(client)
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

    def refresh(self) -> None:
        """Everything is told at once."""

    def request_drain(self, name: str, request: DrainRequest) -> None:
        self._administrator.drain(self._keys, name, request)

    def evict(self, name: str) -> None:
        self._administrator.evict(self._keys, name)

    def suspect(self, member: MemberRecord) -> None:
        self._administrator.suspect(self._keys, member)

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
            self._probe = Probe(self._client, self._keys.members)
            self._probe.start()

    def _range(self, prefix: bytes) -> RangeResponse:
        return self._client.retry(RANGE, RangeRequest(prefix, prefix_end(prefix)), OPERATION_SECONDS)
