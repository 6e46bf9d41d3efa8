from __future__ import annotations

import pytest

from rpcgroup.errors import RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.lease import Lease, is_lease_gone, revoke, time_to_live
from rpcgroup.membership.etcd.messages import PUT, RANGE, PutRequest, RangeRequest


def test_a_lease_lives_until_it_is_revoked_and_takes_its_keys_along(
    client: EtcdClient, prefix: bytes
) -> None:
    lease = Lease(client, ttl=30)
    lease.grant(5)
    client.call(PUT, PutRequest(prefix, b"v", lease.id))
    assert lease.keep_alive()
    assert 0 < time_to_live(client, lease.id, 5) <= 30
    revoke(client, lease.id, 5)
    revoke(client, lease.id, 5)
    assert client.call(RANGE, RangeRequest(prefix)).kvs == []
    assert not lease.keep_alive()
    assert time_to_live(client, lease.id, 5) == -1


def test_a_write_under_a_lease_that_ended_is_known_as_such(client: EtcdClient, prefix: bytes) -> None:
    with pytest.raises(RendezvousError) as caught:
        client.call(PUT, PutRequest(prefix, b"v", 123456789))
    assert is_lease_gone(caught.value)
    assert not is_lease_gone(RendezvousUnavailableError("away"))


def test_a_grant_repeated_is_granted(client: EtcdClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try was applied and its answer lost: the second is told that the lease exists."""
    monkeypatch.setattr("random.SystemRandom.randrange", lambda *_: 4242)
    lease = Lease(client, ttl=30)
    lease.grant(5)
    lease.grant(5)
    assert lease.id == 4242
    revoke(client, lease.id, 5)
