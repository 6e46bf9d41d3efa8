"""The operator on a real API server with simulated nodes: what it is asked for happens, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import RANGE, RangeRequest, prefix_end
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.url import open_rendezvous
from rpcgroup.testing.rendezvous import RecordingListener
from tests.cluster.bed.access import Access
from tests.cluster.random_walk import ROUNDS, STEPS, Group, template, walk
from tests.cluster.simulated_workers import SimulatedWorkers

pytestmark = pytest.mark.timeout(280)

Until = Callable[..., None]


def test_a_group_comes_scales_and_goes(
    group: Group, workers: SimulatedWorkers, access: Access, namespace: str, etcd: EtcdServer, until: Until
) -> None:
    group.apply()
    three = group.settle()
    group.scale(5)
    assert three < group.settle()
    group.scale(2)
    assert len(group.settle() & three) == 2, "the youngest left"
    assert workers.not_deregistered == []
    group.delete()
    until(lambda: not group.pods())
    prefix = contract.group_prefix(namespace, "g").encode()
    with closing(EtcdClient([etcd.endpoint])) as client:
        until(lambda: client.call(RANGE, RangeRequest(prefix, prefix_end(prefix))).kvs == [])
    until(lambda: not access.get("secret,poddisruptionbudget", f"--namespace={namespace}")["items"])


def test_a_group_that_is_made_anew_at_once_has_what_it_needs(
    group: Group, workers: SimulatedWorkers, access: Access, namespace: str, until: Until
) -> None:
    """What its predecessor owned is about to be deleted, and has other names."""
    group.apply()
    group.settle()
    group.delete()
    group.apply()
    group.settle()
    uid = access.get("rpcgroup/g", f"--namespace={namespace}")["metadata"]["uid"]

    def owners() -> set[str]:
        owned = access.get("secret,poddisruptionbudget", f"--namespace={namespace}")["items"]
        return {reference["uid"] for item in owned for reference in item["metadata"]["ownerReferences"]}

    until(lambda: owners() == {uid})
    secrets = access.get("secret", f"--namespace={namespace}")["items"]
    names = {secret["metadata"]["name"] for secret in secrets}
    for pod in group.pods().values():
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "rpcgroup-secret"]
        assert {source["secret"]["name"] for source in volume["projected"]["sources"]} <= names


def test_what_others_keep_in_the_same_etcd_is_left_alone(
    group: Group, workers: SimulatedWorkers, etcd: EtcdServer
) -> None:
    """A group that people have made by hand, or one in a namespace that this operator does not watch."""
    with closing(open_rendezvous(f"etcd://{etcd.endpoint}/elsewhere/theirs")) as theirs:
        theirs.kv.put("k", b"precious")
        listener = RecordingListener()
        theirs.join(MemberRecord(name="w0"), admit=lambda mine, earlier: None, listener=listener, timeout=10)
        group.apply(replicas=1)
        group.settle()
        assert theirs.kv.get("k") == b"precious"
        assert set(theirs.view().members) == {"w0"}


def test_a_worker_that_dies_is_replaced_and_nobody_else_is_touched(
    group: Group, workers: SimulatedWorkers
) -> None:
    group.apply()
    before = group.settle()
    group.kill("g-worker-1")
    after = group.settle()
    assert len(before & after) == 2


def test_a_new_template_replaces_all(group: Group, workers: SimulatedWorkers) -> None:
    group.apply()
    before = group.settle()
    group.apply(template=template("v2"))
    assert not before & group.settle()
    assert workers.not_deregistered == []


@pytest.mark.parametrize("number", range(ROUNDS))
def test_random_steps(group: Group, workers: SimulatedWorkers, number: int) -> None:
    walk(group, workers, STEPS)
