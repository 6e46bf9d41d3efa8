"""etcd's messages and methods: what this package uses of `rpc.proto` and `kv.proto`, the same since 3.4.

Source: https://github.com/etcd-io/etcd/blob/main/api/etcdserverpb/rpc.proto
"""

# ruff: noqa: RUF009 - `wire` is dataclasses.field
from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from rpcgroup.membership.etcd.codec import Kind, wire

__all__ = [
    "COMPACT",
    "DELETE",
    "GRANT",
    "KEEP_ALIVE",
    "PUT",
    "RANGE",
    "REVOKE",
    "STATUS",
    "TIME_TO_LIVE",
    "TXN",
    "WATCH",
    "CompactRequest",
    "CompactResponse",
    "Compare",
    "DeleteRequest",
    "DeleteResponse",
    "Event",
    "GrantRequest",
    "GrantResponse",
    "Header",
    "KeepAliveRequest",
    "KeepAliveResponse",
    "KeyValue",
    "Method",
    "PutRequest",
    "PutResponse",
    "RangeRequest",
    "RangeResponse",
    "RequestOp",
    "ResponseOp",
    "RevokeRequest",
    "RevokeResponse",
    "StatusRequest",
    "StatusResponse",
    "TimeToLiveRequest",
    "TimeToLiveResponse",
    "TxnRequest",
    "TxnResponse",
    "WatchCreateRequest",
    "WatchRequest",
    "WatchResponse",
    "prefix_end",
    "unchanged",
]

_INT, _UINT, _BOOL, _BYTES, _STRING = Kind


@dataclass
class Header:
    cluster_id: int = wire(1, _UINT)
    member_id: int = wire(2, _UINT)
    revision: int = wire(3, _INT)
    raft_term: int = wire(4, _UINT)


@dataclass
class KeyValue:
    key: bytes = wire(1, _BYTES)
    create_revision: int = wire(2, _INT)
    mod_revision: int = wire(3, _INT)
    version: int = wire(4, _INT)
    value: bytes = wire(5, _BYTES)
    lease: int = wire(6, _INT)


@dataclass
class RangeRequest:
    key: bytes = wire(1, _BYTES)
    range_end: bytes = wire(2, _BYTES)
    limit: int = wire(3, _INT)
    revision: int = wire(4, _INT)
    keys_only: bool = wire(8, _BOOL)


@dataclass
class RangeResponse:
    header: Header = wire(1, Header)
    kvs: list[KeyValue] = wire(2, KeyValue, repeated=True)
    more: bool = wire(3, _BOOL)
    count: int = wire(4, _INT)


@dataclass
class PutRequest:
    key: bytes = wire(1, _BYTES)
    value: bytes = wire(2, _BYTES)
    lease: int = wire(3, _INT)


@dataclass
class PutResponse:
    header: Header = wire(1, Header)


@dataclass
class DeleteRequest:
    key: bytes = wire(1, _BYTES)
    range_end: bytes = wire(2, _BYTES)


@dataclass
class DeleteResponse:
    header: Header = wire(1, Header)
    deleted: int = wire(2, _INT)


@dataclass
class Compare:
    """`result` EQUAL 0; `target` MOD 2. Just one of the values is given."""

    result: int = wire(1, _INT)
    target: int = wire(2, _INT)
    key: bytes = wire(3, _BYTES)
    mod_revision: int | None = wire(6, _INT, optional=True)


def unchanged(key: bytes, mod_revision: int) -> Compare:
    """True while the key has not been written since that revision; 0: while there is no such key."""
    return Compare(target=2, key=key, mod_revision=mod_revision)


@dataclass
class RequestOp:
    """Just one of these."""

    request_range: RangeRequest | None = wire(1, RangeRequest)
    request_put: PutRequest | None = wire(2, PutRequest)
    request_delete_range: DeleteRequest | None = wire(3, DeleteRequest)


@dataclass
class ResponseOp:
    """The one that answers the request's."""

    response_range: RangeResponse = wire(1, RangeResponse)
    response_put: PutResponse = wire(2, PutResponse)
    response_delete_range: DeleteResponse = wire(3, DeleteResponse)


@dataclass
class TxnRequest:
    compare: list[Compare] = wire(1, Compare, repeated=True)
    success: list[RequestOp] = wire(2, RequestOp, repeated=True)
    failure: list[RequestOp] = wire(3, RequestOp, repeated=True)


@dataclass
class TxnResponse:
    header: Header = wire(1, Header)
    succeeded: bool = wire(2, _BOOL)
    responses: list[ResponseOp] = wire(3, ResponseOp, repeated=True)


@dataclass
class CompactRequest:
    revision: int = wire(1, _INT)
    physical: bool = wire(2, _BOOL)


@dataclass
class CompactResponse:
    header: Header = wire(1, Header)


@dataclass
class Event:
    """`type`: PUT 0, DELETE 1."""

    type: int = wire(1, _INT)
    kv: KeyValue = wire(2, KeyValue)

    @property
    def is_delete(self) -> bool:
        return self.type == 1


@dataclass
class WatchCreateRequest:
    key: bytes = wire(1, _BYTES)
    range_end: bytes = wire(2, _BYTES)
    start_revision: int = wire(3, _INT)
    progress_notify: bool = wire(4, _BOOL)
    fragment: bool = wire(8, _BOOL)


@dataclass
class WatchRequest:
    create_request: WatchCreateRequest = wire(1, WatchCreateRequest)


@dataclass
class WatchResponse:
    header: Header = wire(1, Header)
    watch_id: int = wire(2, _INT)
    created: bool = wire(3, _BOOL)
    canceled: bool = wire(4, _BOOL)
    compact_revision: int = wire(5, _INT)
    cancel_reason: str = wire(6, _STRING)
    fragment: bool = wire(7, _BOOL)
    events: list[Event] = wire(11, Event, repeated=True)


@dataclass
class GrantRequest:
    ttl: int = wire(1, _INT)
    id: int = wire(2, _INT)


@dataclass
class GrantResponse:
    header: Header = wire(1, Header)
    id: int = wire(2, _INT)
    ttl: int = wire(3, _INT)
    error: str = wire(4, _STRING)


@dataclass
class RevokeRequest:
    id: int = wire(1, _INT)


@dataclass
class RevokeResponse:
    header: Header = wire(1, Header)


@dataclass
class KeepAliveRequest:
    id: int = wire(1, _INT)


@dataclass
class KeepAliveResponse:
    """A `ttl` of 0: the lease is gone, which is no error to etcd."""

    header: Header = wire(1, Header)
    id: int = wire(2, _INT)
    ttl: int = wire(3, _INT)


@dataclass
class TimeToLiveRequest:
    id: int = wire(1, _INT)


@dataclass
class TimeToLiveResponse:
    """A `ttl` of -1: the lease is gone."""

    header: Header = wire(1, Header)
    id: int = wire(2, _INT)
    ttl: int = wire(3, _INT)


@dataclass
class StatusRequest:
    pass


@dataclass
class StatusResponse:
    header: Header = wire(1, Header)
    version: str = wire(2, _STRING)


_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Method(Generic[_Request, _Response]):
    """A gRPC method."""

    path: str
    request: type[_Request]
    response: type[_Response]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


RANGE: Final = Method("/etcdserverpb.KV/Range", RangeRequest, RangeResponse)
PUT: Final = Method("/etcdserverpb.KV/Put", PutRequest, PutResponse)
DELETE: Final = Method("/etcdserverpb.KV/DeleteRange", DeleteRequest, DeleteResponse)
TXN: Final = Method("/etcdserverpb.KV/Txn", TxnRequest, TxnResponse)
COMPACT: Final = Method("/etcdserverpb.KV/Compact", CompactRequest, CompactResponse)
WATCH: Final = Method("/etcdserverpb.Watch/Watch", WatchRequest, WatchResponse)
GRANT: Final = Method("/etcdserverpb.Lease/LeaseGrant", GrantRequest, GrantResponse)
REVOKE: Final = Method("/etcdserverpb.Lease/LeaseRevoke", RevokeRequest, RevokeResponse)
KEEP_ALIVE: Final = Method("/etcdserverpb.Lease/LeaseKeepAlive", KeepAliveRequest, KeepAliveResponse)
TIME_TO_LIVE: Final = Method("/etcdserverpb.Lease/LeaseTimeToLive", TimeToLiveRequest, TimeToLiveResponse)
STATUS: Final = Method("/etcdserverpb.Maintenance/Status", StatusRequest, StatusResponse)


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that makes a request of `prefix` mean every key that begins so; all keys for b""."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"
