from __future__ import annotations

import pytest

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.pod import ObservedPod, pod_name
from rpcgroup.control.status import GroupStatus, Outcome, status_of

TEMPLATE = {"spec": {"containers": [{"name": "main"}]}}
READY, RUNNING, FAILED = PodState.READY, PodState.RUNNING, PodState.FAILED
DRAINING, SUCCEEDED = PodState.DRAINING, PodState.SUCCEEDED


def group(replicas: int, **spec: object) -> RPCGroup:
    spec = {"replicas": replicas, "template": TEMPLATE, **spec}
    return RPCGroup.model_validate(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "g"}, "spec": spec}
    )


def pods(*states: PodState) -> list[ObservedPod]:
    return [ObservedPod(pod_name("g", "worker", i), "worker", i, s, 0.0) for i, s in enumerate(states)]


def status(wanted: RPCGroup, *states: PodState, outcome: Outcome | None = None) -> GroupStatus:
    return status_of(wanted, pods(*states), {}, outcome, now=5.0, previous=None)


def reason(of: GroupStatus, kind: str) -> tuple[bool, str]:
    condition = of.condition(kind)
    assert condition is not None
    return condition.status, condition.reason


def test_replicas_count_what_works_or_will() -> None:
    shown = status(group(3), READY, RUNNING, FAILED, DRAINING, SUCCEEDED)
    assert (shown.replicas, shown.ready_replicas) == (3, 1)


@pytest.mark.parametrize(
    ("states", "available"),
    [
        ((READY, READY), (True, "AllReady")),
        ((READY, SUCCEEDED), (True, "AllReady")),
        ((READY, RUNNING), (True, "MinimumReplicasReady")),
        ((RUNNING, RUNNING), (False, "MinimumReplicasUnavailable")),
    ],
)
def test_available(states: tuple[PodState, ...], available: tuple[bool, str]) -> None:
    assert reason(status(group(2, minReplicas=1), *states), "Available") == available


def test_a_group_that_has_failed_serves_nobody() -> None:
    """Though none is the least that was wanted of it."""
    assert reason(status(group(1), FAILED, outcome=Outcome.FAILED), "Available") == (False, "Failed")


@pytest.mark.parametrize(
    ("states", "progressing"),
    [
        ((READY, READY), (False, "AllReady")),
        ((READY,), (True, "ScalingInProgress")),
        ((READY, READY, READY), (True, "ScalingInProgress")),
        ((READY, RUNNING), (True, "MembershipChanging")),
        ((READY, READY, DRAINING), (True, "MembershipChanging")),
        ((READY, FAILED), (True, "UnhealthyMembers")),
    ],
)
def test_progressing(states: tuple[PodState, ...], progressing: tuple[bool, str]) -> None:
    assert reason(status(group(2), *states), "Progressing") == progressing


def test_degraded_names_the_failed() -> None:
    assert reason(status(group(2), READY, READY), "Degraded") == (False, "AllHealthy")
    condition = status(group(2), READY, FAILED).condition("Degraded")
    assert condition is not None
    assert (condition.status, condition.reason) == (True, "UnhealthyMembers")
    assert "g-worker-1" in condition.message


def test_below_the_least_number_is_degraded_only_after_it_was_reached() -> None:
    wanted = group(2, minReplicas=2)
    coming = status_of(wanted, pods(READY, RUNNING), {}, None, now=1.0, previous=None)
    assert reason(coming, "Degraded") == (False, "AllHealthy")
    there = status_of(wanted, pods(READY, READY), {}, None, now=2.0, previous=coming)
    fallen = status_of(wanted, pods(READY, RUNNING), {}, None, now=3.0, previous=there)
    assert reason(fallen, "Degraded") == (True, "BelowMinReplicas")
    still = status_of(wanted, pods(RUNNING, RUNNING), {}, None, now=4.0, previous=fallen)
    assert reason(still, "Degraded") == (True, "BelowMinReplicas"), "as long as it lasts"
    back = status_of(wanted, pods(READY, READY), {}, None, now=5.0, previous=still)
    assert reason(back, "Degraded") == (False, "AllHealthy")


def test_a_suspended_group_moves_until_nothing_runs() -> None:
    """None of its pods is ready, and none is to be."""
    assert reason(status(group(2, suspend=True), DRAINING), "Progressing") == (True, "MembershipChanging")
    assert reason(status(group(2, suspend=True)), "Progressing") == (False, "Suspended")
    assert reason(status(group(2, suspend=True), SUCCEEDED), "Progressing") == (False, "Suspended")


def test_suspended_once_nothing_runs() -> None:
    assert reason(status(group(1, suspend=True), DRAINING), "Suspended") == (False, "Suspending")
    assert reason(status(group(1, suspend=True)), "Suspended") == (True, "Suspended")
    assert reason(status(group(1), READY), "Suspended") == (False, "NotSuspended")


def test_the_outcome_is_a_condition() -> None:
    assert status(group(1), READY).outcome is None
    ended = status(group(1), SUCCEEDED, outcome=Outcome.COMPLETE)
    assert ended.outcome is Outcome.COMPLETE
    assert reason(ended, "Complete") == (True, "PodsSucceeded")
    assert reason(ended, "Progressing") == (False, "Complete")


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    first = status_of(group(1), pods(RUNNING), {}, None, 1.0, None)
    same = status_of(group(1), pods(RUNNING), {}, None, 2.0, first)
    changed = status_of(group(1), pods(READY), {}, None, 3.0, same)
    times = [s.condition("Progressing").since for s in (first, same, changed)]  # type: ignore[union-attr]
    assert times == [1.0, 1.0, 3.0]


def test_to_dict_speaks_as_the_resource_does() -> None:
    shown = status_of(group(1), pods(READY), {"g-worker-0": 7}, None, 1.0, None).to_dict()
    assert shown["readyReplicas"] == 1
    assert shown["members"] == [
        {"name": "g-worker-0", "role": "worker", "state": "ready", "failures": 0, "incarnation": 7}
    ]
    assert {c["type"]: c["status"] for c in shown["conditions"]}["Available"] == "True"
