"""What is to be done about a group: a pure function of what is wanted, what is there, and the time.

Level-triggered: each call sees the whole state; a driver calls it after every change and at `Plan.wake_at`,
applies the actions in their order, and observes again. An action that fails is simply planned again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.control.lifecycle import ALIVE, FINISHED, WANTED, PodState
from rpcgroup.control.model import PodTemplate, RPCGroup
from rpcgroup.control.pod import ObservedPod, backoff, pod_name
from rpcgroup.control.rollout import bounds, making_way
from rpcgroup.control.status import GroupStatus, Outcome, status_of

__all__ = ["Action", "Create", "Delete", "Drain", "Evict", "Plan", "Restart", "plan"]


@dataclass(frozen=True)
class Create:
    """Make a pod."""

    name: str
    role: str
    index: int


@dataclass(frozen=True)
class Drain:
    """Ask a member to leave by `deadline` (unix seconds)."""

    name: str
    deadline: float
    reason: str


@dataclass(frozen=True)
class Evict:
    """Take a member that is dead, or too slow to leave, out of the group."""

    name: str


@dataclass(frozen=True)
class Delete:
    """Remove a pod; what still runs in it gets `grace` seconds."""

    name: str
    grace: float


@dataclass(frozen=True)
class Restart:
    """Start a failed pod again, in place."""

    name: str


Action = Create | Drain | Evict | Delete | Restart


@dataclass(frozen=True)
class Plan:
    """`wake_at` is the unix time at which the passing of time alone changes the plan.

    `expires_at` is when a group that has ended is to be deleted: `ttlSecondsAfterFinished` after its end.
    """

    actions: tuple[Action, ...]
    status: GroupStatus
    wake_at: float | None
    expires_at: float | None = None

    @property
    def outcome(self) -> Outcome | None:
        return self.status.outcome

    @property
    def at_rest(self) -> bool:
        """No pod holds a process, and none is to get one."""
        starts = any(isinstance(action, (Create, Restart)) for action in self.actions)
        return not starts and all(m.state not in ALIVE for m in self.status.members)


def plan(
    group: RPCGroup,
    pods: Sequence[ObservedPod],
    members: Mapping[str, int],
    now: float,
    previous: GroupStatus | None = None,
) -> Plan:
    """The actions that bring `pods` nearer to `group`, and the status to show.

    `members` has the incarnation of each worker that has a record in the group. `previous` is the status of
    the call before: an outcome in it stands, and conditions keep their times.
    """
    outcome = (previous.outcome if previous else None) or outcome_of(group, pods)
    roles = group.roles()
    actions: list[Action] = [Evict(p.name) for p in pods if p.state in FINISHED and p.name in members]
    for pod in pods:
        actions += see_off(pod, members, now)
    for role in dict.fromkeys([*roles, *(p.role for p in pods)]):
        replicas, template = roles.get(role, (0, None))
        mine = [p for p in pods if p.role == role]
        wanted = [p for p in mine if p.state in WANTED]
        if outcome is not None:
            leaving, reason = unfinished(wanted), "the group has ended"
        elif group.spec.suspend:
            leaving = [p for p in wanted if p.state is not PodState.SUCCEEDED]
            reason = "the group is suspended"
        else:
            limits = bounds(group.spec, replicas, sum(p.outdated for p in wanted))
            order = victims(wanted, group.spec.scale_strategy.workers_to_delete)
            surplus = max(0, len(wanted) - limits.most)
            leaving, staying = order[:surplus], order[surplus:]
            reason = f"{role} is scaled to {replicas}"
            replaced = list(making_way(staying, limits.least))
            for pod in replaced:
                actions.append(farewell(pod, members, now + grace(template), "its template has changed", now))
            actions += restarts([p for p in staying if p not in replaced], now)
            indexes = count() if role == DEFAULT_ROLE else range(limits.most)
            actions += creations(group.metadata.name, role, mine, limits.most - len(wanted), indexes)
        for pod in leaving:
            actions.append(farewell(pod, members, now + grace(template), reason, now))
    status = status_of(group, pods, members, outcome, now, previous)
    return Plan(tuple(actions), status, wake_at(pods, now), expires_at(group, status))


def outcome_of(group: RPCGroup, pods: Sequence[ObservedPod]) -> Outcome | None:
    """Complete when every pod that counts has succeeded; failed when one has failed too often in a row."""
    policy = group.spec.success_policy
    counting = {
        role: replicas
        for role, (replicas, _) in group.roles().items()
        if policy is None or role == policy.role
    }
    if any(counting.values()) and all(has_succeeded(pods, role, n) for role, n in counting.items()):
        return Outcome.COMPLETE
    if any(p.state is PodState.FAILED and p.failures > group.spec.backoff_limit for p in pods):
        return Outcome.FAILED
    return None


def has_succeeded(pods: Iterable[ObservedPod], role: str, replicas: int) -> bool:
    wanted = [p.state for p in pods if p.role == role and p.state in WANTED]
    return len(wanted) >= replicas and all(state is PodState.SUCCEEDED for state in wanted)


def see_off(pod: ObservedPod, members: Mapping[str, int], now: float) -> Iterator[Action]:
    """The next step of a pod that is leaving already: it goes when it has left, or when its time is up."""
    if pod.state is PodState.EXITED:
        yield Delete(pod.name, grace=0.0)
    elif pod.state in (PodState.DRAINING, PodState.LEFT) and now >= pod.drain_deadline:
        if pod.name in members:
            yield Evict(pod.name)
        yield Delete(pod.name, grace=0.0)


def farewell(
    pod: ObservedPod, members: Mapping[str, int], deadline: float, reason: str, now: float
) -> Action:
    """The first step out: a member is drained, anything else has nothing to deregister."""
    if pod.state is PodState.READY or (pod.state is PodState.RUNNING and pod.name in members):
        return Drain(pod.name, deadline, reason)
    return Delete(pod.name, grace=deadline - now if pod.state is PodState.RUNNING else 0.0)


def victims(pods: Iterable[ObservedPod], named: Sequence[str]) -> list[ObservedPod]:
    """Who leaves first: named by the user, of an old template, failed, finished, not started, not ready, cheap,
    young.
    """
    rank = [PodState.FAILED, PodState.SUCCEEDED, PodState.PENDING, PodState.RUNNING, PodState.READY]
    return sorted(
        pods,
        key=lambda p: (
            *(p.name not in named, not p.outdated, rank.index(p.state)),
            *(p.deletion_cost, -p.created_at, -p.index),
        ),
    )


def unfinished(pods: Iterable[ObservedPod]) -> list[ObservedPod]:
    """Those that a group's end concerns; the finished ones stay, as a Job's do, for whoever asks why."""
    return [p for p in pods if p.state not in FINISHED]


def restarts(pods: Iterable[ObservedPod], now: float) -> Iterator[Action]:
    for pod in pods:
        if pod.state is PodState.FAILED and now >= restart_time(pod):
            yield Restart(pod.name)


def creations(
    group: str, role: str, mine: Sequence[ObservedPod], missing: int, indexes: Iterable[int]
) -> Iterator[Action]:
    """New pods on the lowest free of `indexes`; one that is still leaving holds its own.

    A fixed role's names are what its programs are called by, so its indexes end where its number does.
    """
    taken = {p.index for p in mine}
    free = (index for index in indexes if index not in taken)
    for index in islice(free, max(0, missing)):
        yield Create(pod_name(group, role, index), role, index)


def restart_time(pod: ObservedPod) -> float:
    return pod.failed_at + backoff(pod.failures)


def grace(template: PodTemplate | None) -> float:
    """Seconds; of a role that the group no longer has, Kubernetes' default."""
    return float(template.spec.termination_grace_period_seconds) if template else 30.0


def expires_at(group: RPCGroup, status: GroupStatus) -> float | None:
    ttl = group.spec.ttl_seconds_after_finished
    end = status.condition(status.outcome.value) if status.outcome else None
    return end.since + ttl if end is not None and ttl is not None else None


def wake_at(pods: Iterable[ObservedPod], now: float) -> float | None:
    times = [restart_time(p) for p in pods if p.state is PodState.FAILED]
    times += [p.drain_deadline for p in pods if p.state in (PodState.DRAINING, PodState.LEFT)]
    return min((t for t in times if t > now), default=None)
