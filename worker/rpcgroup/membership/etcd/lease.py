"""A lease in etcd: what makes a worker's keys go when the worker is gone."""

from __future__ import annotations

import random

import grpc

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.client import CALL_SECONDS, EtcdClient, EtcdRefusedError
from rpcgroup.membership.etcd.messages import (
    GRANT,
    KEEP_ALIVE,
    REVOKE,
    TIME_TO_LIVE,
    GrantRequest,
    KeepAliveRequest,
    RevokeRequest,
    TimeToLiveRequest,
)

__all__ = ["Lease", "is_lease_gone", "revoke", "time_to_live"]


class Lease:
    """One lease at a time; `id` is 0 before the first. Not thread-safe: its seat owns it."""

    def __init__(self, client: EtcdClient, ttl: int) -> None:
        """`ttl` in seconds; etcd grants no less than 2."""
        self._client = client
        self.ttl = ttl
        self.id = 0

    def grant(self, seconds: float) -> None:
        """A new lease. Its ID is chosen here, so that a try that was applied unseen is recognised."""
        wanted = random.SystemRandom().randrange(1, 1 << 62)
        try:
            self._client.retry(GRANT, GrantRequest(self.ttl, wanted), seconds)
        except EtcdRefusedError as exc:
            if exc.code is not grpc.StatusCode.FAILED_PRECONDITION or "already exists" not in str(exc):
                raise
        self.id = wanted

    def keep_alive(self) -> bool:
        """One try; False where the lease is gone."""
        seconds = min(CALL_SECONDS, self.ttl / 3)
        return self._client.call(KEEP_ALIVE, KeepAliveRequest(self.id), seconds).ttl > 0


def revoke(client: EtcdClient, lease: int, seconds: float) -> None:
    """End a lease and delete its keys; nothing where it is gone already."""
    try:
        client.retry(REVOKE, RevokeRequest(lease), seconds)
    except EtcdRefusedError as exc:
        if not is_lease_gone(exc):
            raise


def time_to_live(client: EtcdClient, lease: int, seconds: float) -> int:
    """What is left of a lease in seconds; -1 where it is gone."""
    return client.retry(TIME_TO_LIVE, TimeToLiveRequest(lease), seconds).ttl


def is_lease_gone(error: RendezvousError) -> bool:
    """etcd's answer to a write that names a lease that has ended."""
    return isinstance(error, EtcdRefusedError) and error.code is grpc.StatusCode.NOT_FOUND
