"""What a group's status says: numbers, conditions, members. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.control.lifecycle import ALIVE, WANTED, PodState
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.pod import ObservedPod

__all__ = ["Condition", "GroupStatus", "MemberStatus", "Outcome", "status_of"]


BELOW_MIN_REPLICAS: Final = "BelowMinReplicas"
UNHEALTHY_MEMBERS: Final = "UnhealthyMembers"


class Outcome(str, enum.Enum):
    """How a group ended; the type of the condition that says so. It never changes again."""

    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True)
class Condition:
    """As Kubernetes writes them; `since` is the unix time of the last change of `status`."""

    type: str
    status: bool
    reason: str
    message: str
    since: float


@dataclass(frozen=True)
class MemberStatus:
    """One pod, and its worker's incarnation where it is a member (else 0)."""

    name: str
    role: str
    state: PodState
    failures: int
    incarnation: int


@dataclass(frozen=True)
class GroupStatus:
    """`replicas` and `ready_replicas` count the elastic role, as the scale subresource wants them."""

    replicas: int
    ready_replicas: int
    conditions: tuple[Condition, ...]
    members: tuple[MemberStatus, ...]

    @property
    def outcome(self) -> Outcome | None:
        return next((o for o in Outcome if self.condition(o.value)), None)

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """In the words of the resource's `status`, apart from times, which are unix seconds."""
        return {
            "replicas": self.replicas,
            "readyReplicas": self.ready_replicas,
            "conditions": [
                {
                    "type": c.type,
                    "status": str(c.status),
                    "reason": c.reason,
                    "message": c.message,
                    "lastTransitionTime": c.since,
                }
                for c in self.conditions
            ],
            "members": [
                {
                    "name": m.name,
                    "role": m.role,
                    "state": m.state.value,
                    "failures": m.failures,
                    "incarnation": m.incarnation,
                }
                for m in self.members
            ],
        }


Finding = tuple[str, bool, str, str]
"""A condition without its time: type, status, reason, message."""


def status_of(
    group: RPCGroup,
    pods: Sequence[ObservedPod],
    members: Mapping[str, int],
    outcome: Outcome | None,
    now: float,
    previous: GroupStatus | None,
) -> GroupStatus:
    elastic = [p for p in pods if p.role == DEFAULT_ROLE]
    findings = [
        available(group, pods, outcome),
        progressing(group, pods, outcome),
        degraded(group, pods, previous),
        suspended(group, pods),
        *ended(group, pods, outcome),
    ]
    return GroupStatus(
        replicas=sum(p.state in WANTED and p.state is not PodState.SUCCEEDED for p in elastic),
        ready_replicas=sum(p.state is PodState.READY for p in elastic),
        conditions=tuple(dated(finding, now, previous) for finding in findings),
        members=tuple(
            MemberStatus(p.name, p.role, p.state, p.failures, members.get(p.name, 0))
            for p in sorted(pods, key=lambda p: (p.role, p.index))
        ),
    )


def available(group: RPCGroup, pods: Sequence[ObservedPod], outcome: Outcome | None) -> Finding:
    """As many elastic workers as `minReplicas` asks for serve, and every fixed one does."""
    if outcome is Outcome.FAILED:
        return "Available", False, outcome.value, "the group has ended"
    short = []
    ready_everywhere = True
    for role, (replicas, _) in group.roles().items():
        serving = sum(p.role == role and p.state in (PodState.READY, PodState.SUCCEEDED) for p in pods)
        enough = group.spec.min_replicas if role == DEFAULT_ROLE else replicas
        ready_everywhere = ready_everywhere and serving >= replicas
        if serving < enough:
            short.append(f"{role} {serving}/{enough}")
    if short:
        return "Available", False, "MinimumReplicasUnavailable", "not ready: " + ", ".join(short)
    if ready_everywhere:
        return "Available", True, "AllReady", "every wanted pod is ready"
    return "Available", True, "MinimumReplicasReady", "the least that is wanted is ready"


def progressing(group: RPCGroup, pods: Sequence[ObservedPod], outcome: Outcome | None) -> Finding:
    moving = sorted(p.name for p in pods if p.state in ALIVE and p.state is not PodState.READY)
    if outcome is None and not group.spec.suspend:
        for role, (replicas, _) in group.roles().items():
            count = sum(p.role == role and p.state in WANTED for p in pods)
            if count != replicas:
                return "Progressing", True, "ScalingInProgress", f"{role}: {count} of {replicas}"
    if moving:
        return "Progressing", True, "MembershipChanging", ", ".join(moving)
    if outcome is not None:
        return "Progressing", False, outcome.value, "the group has ended"
    if failed := names(pods, PodState.FAILED):
        return "Progressing", True, UNHEALTHY_MEMBERS, f"to be started again: {failed}"
    if group.spec.suspend:
        return "Progressing", False, "Suspended", "no pod runs"
    return "Progressing", False, "AllReady", "nothing changes"


def degraded(group: RPCGroup, pods: Sequence[ObservedPod], previous: GroupStatus | None) -> Finding:
    """Pods have failed, or a group that had its least number has it no more; it lives on in both cases."""
    if failed := names(pods, PodState.FAILED):
        return "Degraded", True, UNHEALTHY_MEMBERS, f"failed: {failed}"
    least = group.spec.min_replicas
    ready = sum(p.role == DEFAULT_ROLE and p.state in (PodState.READY, PodState.SUCCEEDED) for p in pods)
    if ready < least and not group.spec.suspend and had_enough(previous):
        return "Degraded", True, BELOW_MIN_REPLICAS, f"{DEFAULT_ROLE}: {ready} ready, minReplicas is {least}"
    return "Degraded", False, "AllHealthy", "no pod has failed"


def names(pods: Sequence[ObservedPod], state: PodState) -> str:
    return ", ".join(sorted(p.name for p in pods if p.state is state))


def had_enough(previous: GroupStatus | None) -> bool:
    """Before that a group is only on its way up."""
    if previous is None:
        return False
    available, before = previous.condition("Available"), previous.condition("Degraded")
    fell = before is not None and before.status and before.reason == BELOW_MIN_REPLICAS
    return fell or (available is not None and available.status)


def suspended(group: RPCGroup, pods: Sequence[ObservedPod]) -> Finding:
    if not group.spec.suspend:
        return "Suspended", False, "NotSuspended", "spec.suspend is false"
    alive = sorted(p.name for p in pods if p.state in ALIVE)
    if alive:
        return "Suspended", False, "Suspending", "still there: " + ", ".join(alive)
    return "Suspended", True, "Suspended", "no pod runs"


def ended(group: RPCGroup, pods: Sequence[ObservedPod], outcome: Outcome | None) -> list[Finding]:
    if outcome is Outcome.COMPLETE:
        policy = group.spec.success_policy
        who = f"of the role {policy.role} " if policy else ""
        return [("Complete", True, "PodsSucceeded", f"all pods {who}have succeeded")]
    if outcome is Outcome.FAILED:
        limit = group.spec.backoff_limit
        over = sorted(p.name for p in pods if p.state is PodState.FAILED and p.failures > limit)
        message = f"failed more than {limit} times in a row: {', '.join(over)}"
        return [("Failed", True, "BackoffLimitExceeded", message)]
    return []


def dated(finding: Finding, now: float, previous: GroupStatus | None) -> Condition:
    kind, status, reason, message = finding
    before = previous.condition(kind) if previous else None
    since = before.since if before and before.status == status else now
    return Condition(kind, status, reason, message, since)
