"""The group's small shared values in etcd."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import (
    RANGE,
    TXN,
    DeleteRequest,
    Event,
    KeyValue,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    unchanged,
)
from rpcgroup.membership.etcd.watch import KeyRange, Watch
from rpcgroup.membership.rendezvous import OPERATION_SECONDS

__all__ = ["EtcdKeyValue"]


class EtcdKeyValue:
    """The `KeyValue` interface. Writes are guarded: one repeated after a failure undoes nobody else's."""

    def __init__(self, client: EtcdClient, keys: GroupKeys, on_watch: Callable[[], None]) -> None:
        """`on_watch` is called before a watch is opened: somebody must look after the connection then."""
        self._client = client
        self._keys = keys
        self._on_watch = on_watch
        self._lock = threading.Lock()  # guards _watches
        self._watches: list[Watch] = []

    def get(self, key: str) -> bytes | None:
        stored = self._read(self._keys.value(key))
        return stored.value if stored else None

    def put(self, key: str, value: bytes) -> None:
        where = self._keys.value(key)
        self._write(where, RequestOp(request_put=PutRequest(where, value)), self._read(where))

    def delete(self, key: str) -> bool:
        where = self._keys.value(key)
        stored = self._read(where)
        if stored is None:
            return False
        self._write(where, RequestOp(request_delete_range=DeleteRequest(where)), stored)
        return True

    def watch(self, prefix: str, callback: Callable[[str, bytes | None], None]) -> Callable[[], None]:
        self._on_watch()
        where = KeyRange.of_prefix(self._keys.value(prefix))
        watch = Watch(self._client, where, _ValueSink(self._keys.values, callback), "rpcgroup-etcd-kv")
        with self._lock:
            self._watches.append(watch)
        watch.start()
        return lambda: self._stop(watch)

    def relist(self) -> None:
        """Have all watches read everything anew."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.relist()

    def stop(self) -> None:
        """End all watches."""
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            self._stop(watch)

    def _stop(self, watch: Watch) -> None:
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)
        watch.stop()

    def _read(self, key: bytes) -> KeyValue | None:
        found = self._client.retry(RANGE, RangeRequest(key), OPERATION_SECONDS).kvs
        return found[0] if found else None

    def _write(self, key: bytes, write: RequestOp, stored: KeyValue | None) -> None:
        """Where the key has changed since it was read, the write counts as done just before that change."""
        guard = unchanged(key, stored.mod_revision if stored else 0)
        self._client.retry(TXN, TxnRequest([guard], [write]), OPERATION_SECONDS)


class _ValueSink:
    """Tells a user of values; knows them all, to tell what went while nothing was heard."""

    def __init__(self, prefix: bytes, callback: Callable[[str, bytes | None], None]) -> None:
        self._prefix = prefix
        self._callback = callback
        self._known: dict[bytes, bytes] = {}

    def on_snapshot(self, values: Sequence[KeyValue], revision: int) -> None:
        found = {kv.key: kv.value for kv in values}
        for key in sorted(self._known.keys() - found.keys()):
            self._tell(key, None)
        for key, value in sorted(found.items()):
            if self._known.get(key) != value:
                self._tell(key, value)

    def on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._tell(event.kv.key, None if event.is_delete else event.kv.value)

    def _tell(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._known.pop(key, None)
        else:
            self._known[key] = value
        self._callback(key.removeprefix(self._prefix).decode(errors="replace"), value)
