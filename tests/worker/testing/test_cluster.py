from __future__ import annotations

import operator
import threading

import pytest

from rpcgroup.errors import DrainedError, JoinError
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.transport.memory import MemoryTransport


@pytest.mark.parametrize("transport", ["memory", "tcp", MemoryTransport()], ids=["memory", "tcp", "own"])
def test_everybody_calls_everybody(transport: object) -> None:
    with LocalCluster(["a", "b", "c"], transport=transport) as cluster:  # type: ignore[arg-type]
        assert list(cluster) == ["a", "b", "c"]
        for here in cluster:
            for there in cluster:
                assert cluster.agent(here).rpc_sync(there, operator.add, (1, 2)) == 3
        assert cluster.address("a") == cluster["a"].me.address
    left = [t.name for t in threading.enumerate() if t.name.startswith("rpcgroup-")]
    assert [name for name in left if name != "rpcgroup-etcd-server"] == []  # the tests' own etcd


def test_members_come_and_go() -> None:
    with LocalCluster("a") as cluster:
        cluster.join("b", role="server", rank=9)
        assert cluster.agent("a").rpc_sync(9, operator.add, (1, 2)) == 3
        cluster.leave("b")
        cluster.join("c")
        cluster.evict("c")
        assert list(cluster) == ["a"]
        with pytest.raises(DrainedError, match=r"b has left the group, .* s ago"):
            cluster.agent("a").rpc_sync("b", operator.add, (1, 2))


def test_a_member_that_does_not_fit_leaves_the_others() -> None:
    with LocalCluster("a") as cluster:
        with pytest.raises(JoinError):
            cluster.join("a")
        assert [m.name for m in cluster["a"].members()] == ["a"]
