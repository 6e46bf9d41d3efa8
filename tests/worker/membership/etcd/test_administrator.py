"""What an administrator asks of any group. Draining and evicting: `test_rendezvous.py`, which does it this way."""

from __future__ import annotations

import pytest

from rpcgroup.errors import UnknownWorkerError
from rpcgroup.membership.etcd.administrator import Administrator
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import PUT, RANGE, PutRequest, RangeRequest
from rpcgroup.membership.rendezvous import DrainRequest


def test_a_purge_takes_all_of_one_group_and_nothing_else(client: EtcdClient) -> None:
    one, longer = GroupKeys("purge", "g"), GroupKeys("purge", "g2")
    keys = [
        where(g) for g in (one, longer) for where in (lambda g: g.value("k"), lambda g: g.member_stats("w"))
    ]
    for key in keys:
        client.call(PUT, PutRequest(key, b"v"))
    administrator = Administrator(client)
    administrator.purge(one)
    administrator.purge(one)
    assert [bool(client.call(RANGE, RangeRequest(key)).kvs) for key in keys] == [False, False, True, True]


def test_who_cannot_be_drained_is_said_with_who_could(client: EtcdClient) -> None:
    group = GroupKeys("drained", "g")
    client.call(PUT, PutRequest(group.member("w0"), b"{}"))
    with pytest.raises(UnknownWorkerError, match=r"'w9': the members are \['w0'\]"):
        Administrator(client).drain(group, "w9", DrainRequest(1.0, ""))


def test_an_evicted_member_that_nobody_is_goes(client: EtcdClient) -> None:
    """One that no worker has written has no lease either."""
    group = GroupKeys("evicted", "g")
    client.call(PUT, PutRequest(group.member("w0"), b"{}"))
    Administrator(client).evict(group, "w0")
    Administrator(client).evict(group, "w0")
    assert client.call(RANGE, RangeRequest(group.member("w0"))).kvs == []
