from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rpcgroup import contract
from rpcgroup.control.plan import Action, Create, Delete, Drain, Evict, Restart
from rpcgroup.membership.record import MemberRecord
from rpcgroup_operator import render
from rpcgroup_operator.api import ApiError
from rpcgroup_operator.apply import Apply, Work
from rpcgroup_operator.metrics import Metrics
from rpcgroup_operator.store import Store

KEY = ("ns", "g")
NAME = "g-worker-0"
NOW = 1000.0
CREATE = Create(NAME, "worker", 0)
Raw = dict[str, Any]


class Cluster:
    """An API server, etcd and who reads Events, as far as the actions go. `lasting` pods have a finalizer."""

    def __init__(self) -> None:
        self.pods: dict[str, Raw] = {}
        self.lasting: set[str] = set()
        self.refusal: ApiError | None = None
        self.drained: list[tuple[str, float, str]] = []
        self.evicted: list[str] = []
        self.told: list[str] = []
        self.records: dict[str, MemberRecord] = {}
        self.version = 0

        self.store = Store()
        self.store.put_group(group())
        self.apply = Apply(self, self, self.store, self, Metrics())  # type: ignore[arg-type]

    def run(self, *actions: Action, failures: int = 0) -> None:
        found = self.store.groups[KEY]
        assert found.spec is not None
        work = Work(found, found.spec, render.Rendezvous("etcd:2379"), {NAME: failures}, NOW)

        async def all_of_them() -> None:
            for action in actions:
                await self.apply.apply(work, action)

        asyncio.run(all_of_them())

    def end(self, name: str) -> None:
        """The pod is gone, and the watch has said so."""
        uid = self.pods.pop(name)["metadata"]["uid"]
        self.store.drop_pod(KEY, name, uid)

    async def create(self, path: str, body: Raw) -> Raw:
        if self.refusal is not None:
            raise self.refusal
        name = body["metadata"]["name"]
        if name in self.pods:
            raise ApiError(409, "AlreadyExists", "there")
        self.version += 1
        metadata = {**body["metadata"], "uid": f"u{self.version}", "resourceVersion": str(self.version)}
        self.pods[name] = {**body, "metadata": metadata}
        return {"metadata": metadata}

    async def get(self, path: str) -> Raw:
        return self.pods[path.rsplit("/", 1)[1]]

    async def merge(self, path: str, body: Raw) -> Raw:
        pod = self.pods[path.rsplit("/", 1)[1]]
        self.version += 1
        pod["metadata"]["annotations"].update(body["metadata"]["annotations"])
        pod["metadata"]["resourceVersion"] = str(self.version)
        return pod

    async def delete(self, path: str, *, grace: float, uid: str) -> None:
        name = path.rsplit("/", 1)[1]
        if name in self.lasting:
            self.pods[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        elif self.pods[name]["metadata"]["uid"] == uid:
            del self.pods[name]

    def of(self, key: object) -> dict[str, MemberRecord]:
        return self.records

    async def drain(self, key: object, name: str, request: Any) -> None:
        self.drained.append((name, request.deadline, request.reason))

    async def evict(self, key: object, name: str) -> None:
        self.evicted.append(name)

    def normal(self, group: object, reason: str, note: str) -> None:
        self.told.append(reason)

    warn = normal


def group() -> Raw:
    metadata = {"name": "g", "namespace": "ns", "uid": "g1", "resourceVersion": "1", "generation": 1}
    spec = {"replicas": 1, "template": {"spec": {"containers": [{"name": "main"}]}}}
    return {"apiVersion": contract.API_VERSION, "kind": contract.KIND, "metadata": metadata, "spec": spec}


def failures_of(pod: Raw) -> str | None:
    found: str | None = pod["metadata"]["annotations"].get(contract.ANNOTATION_FAILURES)
    return found


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_pod_is_made_once(cluster: Cluster) -> None:
    cluster.run(CREATE, CREATE)
    assert cluster.told == ["Created"]
    assert list(cluster.store.pods(KEY)) == [NAME]


def test_a_pod_of_somebody_else_is_left_alone(cluster: Cluster) -> None:
    cluster.pods[NAME] = {"metadata": {"name": NAME, "uid": "x", "ownerReferences": [{"uid": "other"}]}}
    with pytest.raises(ApiError, match="not of this group"):
        cluster.run(CREATE)
    assert cluster.told == ["NameTaken"]


def test_of_a_predecessors_pod_that_is_about_to_go_nothing_is_told(cluster: Cluster) -> None:
    cluster.pods[NAME] = {"metadata": {"name": NAME, "uid": "x", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    with pytest.raises(ApiError, match="not of this group"):
        cluster.run(CREATE)
    assert cluster.told == []


@pytest.mark.parametrize(("causes", "told"), [([], ["FailedCreate"]), (["NamespaceTerminating"], [])])
def test_a_refusal_is_told_unless_all_of_it_goes_anyway(
    cluster: Cluster, causes: list[str], told: list[str]
) -> None:
    cluster.refusal = ApiError(403, "Forbidden", "no", frozenset(causes))
    with pytest.raises(ApiError):
        cluster.run(CREATE)
    assert cluster.told == told


def test_a_worker_is_asked_to_leave_and_the_pod_says_so(cluster: Cluster) -> None:
    cluster.run(CREATE, Drain(NAME, NOW + 30, "scaled"))
    assert cluster.drained == [(NAME, NOW + 30, "scaled")]
    assert cluster.store.pods(KEY)[NAME].drain_deadline == NOW + 30


def test_a_new_operator_asks_once_more_and_only_once(cluster: Cluster) -> None:
    cluster.run(CREATE, Drain(NAME, NOW + 30, "scaled"))
    found, pod = cluster.store.groups[KEY], cluster.store.pods(KEY)[NAME]
    asyncio.run(cluster.apply.remind(found, pod))
    assert len(cluster.drained) == 1
    fresh = Apply(cluster, cluster, cluster.store, cluster, Metrics())  # type: ignore[arg-type]
    for _ in range(2):
        asyncio.run(fresh.remind(found, pod))
    assert len(cluster.drained) == 2


def test_a_deleted_pod_counts_as_leaving_at_once(cluster: Cluster) -> None:
    cluster.lasting.add(NAME)
    cluster.run(CREATE, Delete(NAME, 0.0))
    assert cluster.store.pods(KEY)[NAME].deleting


def test_only_the_member_of_this_very_pod_is_evicted(cluster: Cluster) -> None:
    cluster.run(CREATE)
    uid = cluster.store.pods(KEY)[NAME].uid
    cluster.records[NAME] = MemberRecord(NAME, pod_uid="of another")
    cluster.run(Evict(NAME))
    assert cluster.evicted == []
    cluster.records[NAME] = MemberRecord(NAME, pod_uid=uid)
    cluster.run(Evict(NAME))
    assert cluster.evicted == [NAME]


def test_a_failed_pod_is_followed_by_one_that_knows_of_it(cluster: Cluster) -> None:
    cluster.run(CREATE, Restart(NAME), failures=3)
    assert failures_of(cluster.pods[NAME]) == "3"
    assert cluster.told == ["Created", "Restarting", "Created"]


def test_also_where_a_finalizer_holds_the_failed_one(cluster: Cluster) -> None:
    cluster.lasting.add(NAME)
    cluster.run(CREATE, Restart(NAME), failures=3)
    assert cluster.told == ["Created", "Restarting"]
    assert cluster.store.pods(KEY)[NAME].deleting
    cluster.end(NAME)
    cluster.run(CREATE)
    assert failures_of(cluster.pods[NAME]) == "3"
    cluster.end(NAME)
    cluster.run(CREATE)
    assert failures_of(cluster.pods[NAME]) is None
