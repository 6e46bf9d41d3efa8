from __future__ import annotations

from typing import Any

import pytest

from rpcgroup import contract
from rpcgroup.control.lifecycle import PodState
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup_operator.pods import Pod, joined_condition, observe, unix_time


def raw(phase: str = "Running", **parts: Any) -> dict[str, Any]:
    """A pod as the API server gives it."""
    annotations = parts.pop("annotations", {})
    status = {"phase": phase, **parts.pop("status", {})}
    labels = {
        contract.LABEL_GROUP: "g",
        contract.LABEL_ROLE: "worker",
        contract.LABEL_INDEX: "3",
        contract.LABEL_TEMPLATE_HASH: "new",
    }
    return {
        "metadata": {
            "name": "g-worker-3",
            "namespace": "ns",
            "uid": "u1",
            "resourceVersion": "17",
            "creationTimestamp": "2026-11-22T05:00:00Z",
            "labels": labels,
            "annotations": annotations,
            **parts,
        },
        "spec": {"nodeName": "n1"},
        "status": status,
    }


def pod(phase: str = "Running", **parts: Any) -> Pod:
    made = Pod.of(raw(phase, **parts))
    assert made is not None
    return made


def member(state: MemberState = MemberState.READY, uid: str = "u1") -> MemberRecord:
    return MemberRecord(name="g-worker-3", incarnation=5, state=state, pod_uid=uid)


DRAINED = {contract.ANNOTATION_DRAIN_DEADLINE: "1234.5"}
DELETED = {"deletionTimestamp": "2026-11-22T05:01:00Z"}


@pytest.mark.parametrize(
    ("made", "record", "state"),
    [
        (pod("Pending"), None, PodState.PENDING),
        (pod(), None, PodState.RUNNING),
        (pod(), member(MemberState.JOINING), PodState.RUNNING),
        (pod(), member(), PodState.READY),
        (pod("Pending"), member(), PodState.READY),
        (pod(), member(uid="of an earlier pod"), PodState.RUNNING),
        (pod(annotations=DRAINED), member(), PodState.DRAINING),
        (pod(annotations=DRAINED), None, PodState.LEFT),
        (pod("Succeeded", annotations=DRAINED), None, PodState.EXITED),
        (pod("Failed", annotations=DRAINED), None, PodState.EXITED),
        (pod("Succeeded"), None, PodState.SUCCEEDED),
        (pod("Failed"), member(), PodState.FAILED),
        (pod("Failed", **DELETED), member(), PodState.TERMINATING),
        (pod("Succeeded", **DELETED), None, PodState.TERMINATING),
    ],
)
def test_states(made: Pod, record: MemberRecord | None, state: PodState) -> None:
    assert observe(made, record, "new").state is state


def test_a_pod_without_our_labels_is_none_of_ours() -> None:
    stranger = raw()
    del stranger["metadata"]["labels"][contract.LABEL_ROLE]
    assert Pod.of(stranger) is None


def test_failures_in_a_row_are_those_before_and_this_one() -> None:
    run = {
        "state": {
            "terminated": {
                "exitCode": 1,
                "startedAt": "2026-11-22T05:00:10Z",
                "finishedAt": "2026-11-22T05:00:20Z",
            }
        }
    }
    before = {contract.ANNOTATION_FAILURES: "2"}
    failed = pod("Failed", annotations=before, status={"containerStatuses": [run]})
    observed = observe(failed, None, "new")
    assert observed.failures == 3
    assert observed.failed_at == unix_time("2026-11-22T05:00:20Z")
    assert observe(pod(annotations=before), None, "new").failures == 2


def test_a_failure_after_long_health_counts_as_the_first() -> None:
    terminated = {"startedAt": "2026-11-22T05:00:00Z", "finishedAt": "2026-11-22T06:00:00Z"}
    status = {"containerStatuses": [{"state": {"terminated": terminated}}]}
    failed = pod("Failed", annotations={contract.ANNOTATION_FAILURES: "6"}, status=status)
    assert observe(failed, None, "new").failures == 1


def test_what_people_write_into_annotations_does_no_harm() -> None:
    nonsense = {contract.ANNOTATION_DRAIN_DEADLINE: "soon", contract.ANNOTATION_DELETION_COST: "cheap"}
    observed = observe(pod(annotations=nonsense), member(), "new")
    assert observed.state is PodState.READY
    assert observed.deletion_cost == 0


def test_a_pod_of_another_template_is_outdated() -> None:
    assert observe(pod(), None, "newer").outdated
    assert not observe(pod(), None, "new").outdated
    assert not observe(pod(), None, "").outdated, "its role is no more: nothing to compare with"


def test_the_gate_is_read_back() -> None:
    for joined in (True, False):
        condition = joined_condition(joined, "2026-11-22T05:00:00Z")
        assert pod(status={"conditions": [condition]}).joined is joined
