from __future__ import annotations

from dataclasses import replace
from typing import Any

from rpcgroup import contract
from rpcgroup_operator.pods import Pod
from rpcgroup_operator.store import Group, Store

KEY = ("ns", "g")


def pod(version: int, uid: str = "u1", **facts: Any) -> Pod:
    made = Pod.of(
        {
            "metadata": {
                "name": "g-worker-0",
                "namespace": "ns",
                "uid": uid,
                "resourceVersion": str(version),
                "labels": {contract.LABEL_ROLE: "worker", contract.LABEL_INDEX: "0"},
            }
        }
    )
    assert made is not None
    return replace(made, **facts)


def raw(version: int, uid: str = "g1", generation: int = 1, **spec: Any) -> dict[str, Any]:
    metadata = {
        "name": "g",
        "namespace": "ns",
        "uid": uid,
        "resourceVersion": str(version),
        "generation": generation,
    }
    return {"apiVersion": contract.API_VERSION, "kind": contract.KIND, "metadata": metadata, "spec": spec}


def group(version: int, **spec: Any) -> Group:
    return Group.of(raw(version, **spec))


def test_old_news_of_a_pod_is_no_news() -> None:
    store = Store()
    assert store.put_pod(KEY, pod(5, drain_deadline=9.0))
    assert not store.put_pod(KEY, pod(4))
    assert store.pods(KEY)["g-worker-0"].drain_deadline == 9.0
    assert store.put_pod(KEY, pod(6))


def test_a_pod_that_has_gone_does_not_come_back() -> None:
    store = Store()
    store.put_pod(KEY, pod(5))
    store.drop_pod(KEY, "g-worker-0", "u1")
    assert not store.put_pod(KEY, pod(5))
    assert not store.pods(KEY)


def test_a_deletion_that_was_taken_stays_taken() -> None:
    store = Store()
    store.put_pod(KEY, pod(5))
    store.mark_deleting(KEY, "g-worker-0", "another")
    assert not store.pods(KEY)["g-worker-0"].deleting
    store.mark_deleting(KEY, "g-worker-0", "u1")
    assert not store.put_pod(KEY, pod(5))
    assert store.pods(KEY)["g-worker-0"].deleting
    assert store.put_pod(KEY, pod(6, deleting=True))


def test_the_end_of_a_pod_is_not_that_of_the_next_of_its_name() -> None:
    store = Store()
    store.put_pod(KEY, pod(5))
    store.put_pod(KEY, pod(8, uid="u2"))
    store.drop_pod(KEY, "g-worker-0", "u1")
    assert store.pods(KEY)["g-worker-0"].uid == "u2"


def test_a_group_made_anew_counts_from_its_own_beginning() -> None:
    store = Store()
    assert store.put_group(raw(9))
    assert not store.put_group(raw(8))
    assert store.put_group(raw(3, uid="g2"))
    store.drop_group(KEY, "g1")
    assert store.groups[KEY].uid == "g2"
    store.drop_group(KEY, "g2")
    assert not store.groups


def test_a_spec_is_read_once_for_each_generation() -> None:
    store = Store()
    store.put_group(raw(1, replicas=1, template=TEMPLATE))
    first = store.groups[KEY].spec
    store.put_group({**raw(2, replicas=1, template=TEMPLATE), "status": {"replicas": 1}})
    assert store.groups[KEY].spec is first
    assert store.groups[KEY].status == {"replicas": 1}
    store.put_group(raw(3, generation=2, replicas=2, template=TEMPLATE))
    spec = store.groups[KEY].spec
    assert spec is not None and spec.spec.replicas == 2


def test_a_spec_that_makes_no_sense_says_why() -> None:
    assert "replicas" in group(1, replicas="three").fault
    assert "minReplicas" in group(1, replicas=1, minReplicas=2, template=TEMPLATE).fault
    fine = group(1, replicas=1, template=TEMPLATE)
    assert fine.spec is not None and not fine.fault


TEMPLATE = {"spec": {"containers": [{"name": "main"}]}}
