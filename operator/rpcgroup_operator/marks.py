"""Which groups an operator has made a place for in etcd: written down there, where it outlives the operator."""

from __future__ import annotations

from rpcgroup.contract import ETCD_OPERATOR_ROOT
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import (
    DELETE,
    PUT,
    RANGE,
    DeleteRequest,
    PutRequest,
    RangeRequest,
    prefix_end,
)
from rpcgroup.membership.rendezvous import OPERATION_SECONDS
from rpcgroup_operator.members import GroupKey

__all__ = ["Marks"]


class Marks:
    """Of one operator. No group's user may write here: a mark is what entitles to delete."""

    def __init__(self, client: EtcdClient, owner: str) -> None:
        """`owner` names the operator before all others that may ever use the same etcd, of other clusters too."""
        self._client = client
        self._prefix = f"{ETCD_OPERATOR_ROOT}/{owner}/"

    def read(self) -> dict[GroupKey, str]:
        """The groups and their UIDs."""
        prefix = self._prefix.encode()
        found = self._client.retry(RANGE, RangeRequest(prefix, prefix_end(prefix)), OPERATION_SECONDS).kvs
        marks: dict[GroupKey, str] = {}
        for kv in found:
            namespace, _, name = kv.key.removeprefix(prefix).decode().partition("/")
            marks[namespace, name] = kv.value.decode()
        return marks

    def put(self, group: GroupKey, uid: str) -> None:
        self._client.retry(PUT, PutRequest(self._key(group), uid.encode()), OPERATION_SECONDS)

    def remove(self, group: GroupKey) -> None:
        self._client.retry(DELETE, DeleteRequest(self._key(group)), OPERATION_SECONDS)

    def _key(self, group: GroupKey) -> bytes:
        return f"{self._prefix}{group[0]}/{group[1]}".encode()
