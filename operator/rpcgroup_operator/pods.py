"""What the operator remembers of a pod, and what the planner sees of it. Pure.

Everything that must survive the operator is written on the pod itself: its place in the group in labels, the
drain and the failures of its forerunners in annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rpcgroup import contract
from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.pod import ObservedPod, failures_in_a_row
from rpcgroup.membership.record import MemberRecord, MemberState

__all__ = ["Pod", "is_of", "joined_condition", "observe", "unix_time"]


@dataclass(frozen=True)
class Pod:
    """The fields of a pod that count here; a whole one takes 20 times the memory. Times are unix seconds, 0 = none."""

    name: str
    uid: str
    version: int
    """The resource version. The API server's numbers grow, and may be compared since Kubernetes 1.35."""
    role: str
    index: int
    template_hash: str
    created_at: float
    deleting: bool
    phase: str
    started_at: float
    ended_at: float
    joined: bool
    """Its readiness gate says so."""
    node: str
    drain_deadline: float
    failures: int
    deletion_cost: int

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Pod | None:
        """None where a label is missing: it is not one of ours."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        role, index = labels.get(contract.LABEL_ROLE), labels.get(contract.LABEL_INDEX, "")
        if role is None or not index.isdigit():
            return None
        started, ended = run_of(status)
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            version=int(metadata["resourceVersion"]),
            role=role,
            index=int(index),
            template_hash=labels.get(contract.LABEL_TEMPLATE_HASH, ""),
            created_at=unix_time(metadata.get("creationTimestamp")),
            deleting=metadata.get("deletionTimestamp") is not None,
            phase=status.get("phase", "Pending"),
            started_at=started,
            ended_at=ended,
            joined=has_joined(status),
            node=(raw.get("spec") or {}).get("nodeName", ""),
            drain_deadline=number(annotations.get(contract.ANNOTATION_DRAIN_DEADLINE)),
            failures=int(number(annotations.get(contract.ANNOTATION_FAILURES))),
            deletion_cost=int(number(annotations.get(contract.ANNOTATION_DELETION_COST))),
        )


def observe(pod: Pod, record: MemberRecord | None, template_hash: str) -> ObservedPod:
    """`record` is that of the pod's name in the group; `template_hash` what its role has now."""
    mine = record if record is not None and is_of(record, pod) else None
    state = state_of(pod, mine)
    failed = state is PodState.FAILED
    ran_for = pod.ended_at - pod.started_at if pod.started_at else 0.0
    return ObservedPod(
        name=pod.name,
        role=pod.role,
        index=pod.index,
        state=state,
        created_at=pod.created_at,
        failures=failures_in_a_row(pod.failures, ran_for) if failed else pod.failures,
        failed_at=(pod.ended_at or pod.created_at) if failed else 0.0,
        drain_deadline=pod.drain_deadline,
        deletion_cost=pod.deletion_cost,
        outdated=bool(template_hash) and pod.template_hash != template_hash,
    )


def is_of(record: MemberRecord, pod: Pod) -> bool:
    """Not of an earlier pod of its name. A worker that was not told of its pod is taken at its name."""
    return record.pod_uid in ("", pod.uid)


def state_of(pod: Pod, record: MemberRecord | None) -> PodState:
    """Deletion first: a pod that ends by it looks failed on its way out."""
    if pod.deleting:
        return PodState.TERMINATING
    if pod.phase in ("Succeeded", "Failed"):
        if pod.drain_deadline:
            return PodState.EXITED
        return PodState.SUCCEEDED if pod.phase == "Succeeded" else PodState.FAILED
    if pod.drain_deadline:
        return PodState.DRAINING if record is not None else PodState.LEFT
    if record is not None and record.state is not MemberState.JOINING:
        return PodState.READY
    return PodState.RUNNING if pod.phase == "Running" else PodState.PENDING


def has_joined(status: dict[str, Any]) -> bool:
    conditions = status.get("conditions") or []
    return any(c["type"] == contract.READINESS_GATE and c["status"] == "True" for c in conditions)


def joined_condition(joined: bool, now: str) -> dict[str, Any]:
    """The condition behind the readiness gate; `now` as Kubernetes writes times."""
    return {
        "type": contract.READINESS_GATE,
        "status": str(joined),
        "reason": "InTheGroup" if joined else "NotInTheGroup",
        "lastTransitionTime": now,
    }


def run_of(status: dict[str, Any]) -> tuple[float, float]:
    """When the pod's containers last began and ended."""
    runs = [
        (state.get("terminated") or {}, state.get("running") or {})
        for container in status.get("containerStatuses") or []
        if (state := container.get("state"))
    ]
    started = [unix_time(t.get("startedAt") or r.get("startedAt")) for t, r in runs]
    ended = [unix_time(t.get("finishedAt")) for t, _ in runs]
    return max(started, default=0.0), max(ended, default=0.0)


def unix_time(text: str | None) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0


def number(text: str | None) -> float:
    """Of an annotation, which anybody may have written: 0 for what is none."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
