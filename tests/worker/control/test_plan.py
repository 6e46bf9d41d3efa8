"""The planner: a table of single steps, then random histories in a simulated world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rpcgroup.control.lifecycle import ALIVE, FINISHED, WANTED, PodEvent, PodState, advance
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.plan import Action, Create, Delete, Drain, Evict, Plan, Restart, plan
from rpcgroup.control.pod import ObservedPod, pod_name
from rpcgroup.control.status import Outcome

TEMPLATE = {"spec": {"containers": [{"name": "main"}], "terminationGracePeriodSeconds": 20}}
NOW = 1000.0

PENDING, RUNNING, READY = PodState.PENDING, PodState.RUNNING, PodState.READY
DRAINING, LEFT, EXITED = PodState.DRAINING, PodState.LEFT, PodState.EXITED
TERMINATING, SUCCEEDED, FAILED = PodState.TERMINATING, PodState.SUCCEEDED, PodState.FAILED


def group(replicas: int, *, servers: int = 0, **spec: object) -> RPCGroup:
    roles = [{"name": "server", "replicas": servers, "template": TEMPLATE}] if servers else []
    return RPCGroup.model_validate(
        {
            "apiVersion": "rpcgroup.dev/v1alpha1",
            "kind": "RPCGroup",
            "metadata": {"name": "g"},
            "spec": {"replicas": replicas, "template": TEMPLATE, "roles": roles, **spec},
        }
    )


def pod(index: int, state: PodState, role: str = "worker", **facts: object) -> ObservedPod:
    observed = ObservedPod(pod_name("g", role, index), role, index, state, created_at=float(index))
    return replace(observed, **facts)  # type: ignore[arg-type]


def members(*names: str) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(names, 1)}


def actions(
    wanted: RPCGroup, pods: list[ObservedPod], present: Mapping[str, int] | None = None
) -> list[Action]:
    if present is None:
        present = members(*(p.name for p in pods if p.state in (READY, DRAINING)))
    return list(plan(wanted, pods, present, NOW).actions)


def test_a_new_group_creates_every_role() -> None:
    assert actions(group(2, servers=1), []) == [
        Create("g-worker-0", "worker", 0),
        Create("g-worker-1", "worker", 1),
        Create("g-server-0", "server", 0),
    ]


def test_what_is_wanted_is_left_alone() -> None:
    assert actions(group(3), [pod(0, READY), pod(1, RUNNING), pod(2, PENDING)]) == []


def test_a_fixed_role_waits_for_its_own_index() -> None:
    """Its programs are called by their names; the elastic workers are called by whoever asks who is there."""
    assert actions(group(0, servers=1), [pod(0, TERMINATING, "server")]) == []
    assert actions(group(1), [pod(0, TERMINATING)]) == [Create("g-worker-1", "worker", 1)]


def test_a_new_template_replaces_one_by_one() -> None:
    old = [pod(n, READY, outdated=True) for n in range(3)]
    (drain,) = actions(group(3), old)
    assert isinstance(drain, Drain)
    assert drain.name == "g-worker-2"
    assert drain.reason == "its template has changed"
    leaving = [*old[:2], pod(2, DRAINING, outdated=True, drain_deadline=NOW + 9)]
    assert actions(group(3), leaving) == [Create("g-worker-3", "worker", 3)]
    assert actions(group(3), [*leaving, pod(3, RUNNING)]) == [], "the new one is not ready yet"
    (drain,) = actions(group(3), [*leaving, pod(3, READY)])
    assert isinstance(drain, Drain)
    assert drain.name == "g-worker-1"


def test_a_new_template_with_surge_adds_before_it_takes() -> None:
    strategy = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    wanted = group(2, rolloutStrategy=strategy)
    old = [pod(0, READY, outdated=True), pod(1, READY, outdated=True)]
    assert actions(wanted, old) == [Create("g-worker-2", "worker", 2)]
    assert actions(wanted, [*old, pod(2, RUNNING)]) == []
    (drain,) = actions(wanted, [*old, pod(2, READY)])
    assert isinstance(drain, Drain)


def test_what_serves_nobody_is_replaced_at_once() -> None:
    pods = [pod(n, FAILED, outdated=True, failed_at=NOW) for n in range(3)]
    assert [type(action) for action in actions(group(3), pods)] == [Delete, Delete, Delete]


def test_the_lowest_free_index_is_used_first_and_one_that_leaves_holds_its_own() -> None:
    pods = [pod(0, TERMINATING), pod(2, READY), pod(3, DRAINING, drain_deadline=NOW + 9)]
    assert actions(group(3), pods) == [Create("g-worker-1", "worker", 1), Create("g-worker-4", "worker", 4)]


@pytest.mark.parametrize("state", [TERMINATING, DRAINING, LEFT])
def test_a_pod_that_leaves_does_not_count(state: PodState) -> None:
    """kuberay#3286: 10 -> 9 must not recreate anything, and must not remove a second one."""
    leaving = pod(9, state, drain_deadline=NOW + 9)
    assert actions(group(9), [*(pod(i, READY) for i in range(9)), leaving]) == []


def test_a_ready_victim_is_drained_first() -> None:
    assert actions(group(1), [pod(0, READY), pod(1, READY)]) == [
        Drain("g-worker-1", NOW + 20, "worker is scaled to 1")
    ]


def test_a_member_that_is_not_ready_yet_is_drained_too() -> None:
    (action,) = actions(group(0), [pod(0, RUNNING)], members("g-worker-0"))
    assert isinstance(action, Drain)


@pytest.mark.parametrize(
    ("state", "grace"), [(PENDING, 0.0), (RUNNING, 20.0), (FAILED, 0.0), (SUCCEEDED, 0.0)]
)
def test_a_victim_outside_the_group_is_deleted_at_once(state: PodState, grace: float) -> None:
    assert actions(group(1), [pod(0, READY), pod(1, state)]) == [Delete("g-worker-1", grace)]


VICTIMS = {
    "named by the user": ([pod(0, READY), pod(1, FAILED), pod(2, READY)], ["g-worker-0"], "g-worker-0"),
    "failed": ([pod(0, FAILED), pod(1, PENDING), pod(2, READY)], [], "g-worker-0"),
    "pending before running": ([pod(0, PENDING), pod(1, RUNNING), pod(2, READY)], [], "g-worker-0"),
    "not ready": ([pod(0, RUNNING), pod(1, READY), pod(2, READY)], [], "g-worker-0"),
    "deletion cost": (
        [pod(0, READY, deletion_cost=5), pod(1, READY, deletion_cost=-1), pod(2, READY)],
        [],
        "g-worker-1",
    ),
    "youngest": ([pod(0, READY, created_at=9.0), pod(1, READY), pod(2, READY)], [], "g-worker-0"),
    "a name that nobody has": ([pod(0, READY), pod(1, READY), pod(2, READY)], ["x"], "g-worker-2"),
}


@pytest.mark.parametrize(("pods", "named", "victim"), VICTIMS.values(), ids=VICTIMS)
def test_victims_in_order(pods: list[ObservedPod], named: list[str], victim: str) -> None:
    wanted = group(2, scaleStrategy={"workersToDelete": named})
    assert [a.name for a in actions(wanted, pods) if not isinstance(a, Restart)] == [victim]


def test_a_name_to_delete_without_fewer_replicas_does_nothing() -> None:
    """Else the pod that comes after it under the same name would go too, for ever."""
    assert actions(group(1, scaleStrategy={"workersToDelete": ["g-worker-0"]}), [pod(0, READY)]) == []


@pytest.mark.parametrize("state", [DRAINING, LEFT])
def test_within_its_time_a_pod_that_leaves_is_left_alone(state: PodState) -> None:
    leaving = pod(0, state, drain_deadline=NOW + 1)
    result = plan(group(0), [leaving], members("g-worker-0"), NOW)
    assert result.actions == ()
    assert result.wake_at == NOW + 1


def test_past_the_deadline_the_lease_goes_first() -> None:
    late = pod(0, DRAINING, drain_deadline=NOW)
    assert actions(group(0), [late]) == [Evict("g-worker-0"), Delete("g-worker-0", 0.0)]
    assert actions(group(0), [late], {}) == [Delete("g-worker-0", 0.0)]


def test_a_drained_pod_goes_when_it_has_ended() -> None:
    assert actions(group(0), [pod(0, EXITED)]) == [Delete("g-worker-0", 0.0)]


def test_a_failed_pod_is_evicted_at_once_and_restarted_with_backoff() -> None:
    failed = pod(0, FAILED, failures=3, failed_at=NOW - 3)
    early = plan(group(1), [failed], members("g-worker-0"), NOW)
    assert early.actions == (Evict("g-worker-0"),)
    assert early.wake_at == NOW + 1
    assert plan(group(1), [failed], {}, NOW + 1).actions == (Restart("g-worker-0"),)


def test_over_the_backoff_limit_the_group_fails_and_the_rest_is_drained() -> None:
    pods = [pod(0, FAILED, failures=3, failed_at=NOW), pod(1, READY)]
    result = plan(group(2, backoffLimit=2), pods, members("g-worker-1"), NOW)
    assert result.outcome is Outcome.FAILED
    assert result.actions == (Drain("g-worker-1", NOW + 20, "the group has ended"),)
    condition = result.status.condition("Failed")
    assert condition is not None
    assert "g-worker-0" in condition.message


def test_a_group_completes_with_the_role_of_its_success_policy() -> None:
    pods = [pod(0, READY), pod(1, FAILED, failures=1), pod(0, SUCCEEDED, "server")]
    wanted = group(2, servers=1, successPolicy={"role": "server"})
    result = plan(wanted, pods, members("g-worker-0"), NOW)
    assert result.outcome is Outcome.COMPLETE
    assert result.actions == (Drain("g-worker-0", NOW + 20, "the group has ended"),)
    assert not result.at_rest
    assert plan(wanted, [replace(p, state=SUCCEEDED) for p in pods], {}, NOW).at_rest


def test_without_a_policy_all_must_succeed() -> None:
    pods = [pod(0, SUCCEEDED), pod(1, SUCCEEDED), pod(0, READY, "server")]
    assert plan(group(2, servers=1), pods, members("g-server-0"), NOW).outcome is None
    pods[-1] = pod(0, SUCCEEDED, "server")
    assert plan(group(2, servers=1), pods, {}, NOW).outcome is Outcome.COMPLETE


def test_an_empty_group_is_not_complete() -> None:
    assert plan(group(0), [], {}, NOW).outcome is None


def test_an_outcome_stands() -> None:
    before = plan(group(1), [pod(0, SUCCEEDED)], {}, NOW)
    after = plan(group(5), [], {}, NOW + 9, before.status)
    assert after.outcome is Outcome.COMPLETE
    assert after.actions == ()
    condition = after.status.condition("Complete")
    assert condition is not None
    assert condition.since == NOW


def test_suspend_drains_what_runs_and_keeps_what_succeeded() -> None:
    pods = [pod(0, READY), pod(1, SUCCEEDED), pod(2, FAILED, failures=1), pod(3, RUNNING)]
    assert actions(group(4, suspend=True), pods) == [
        Drain("g-worker-0", NOW + 20, "the group is suspended"),
        Delete("g-worker-2", 0.0),
        Delete("g-worker-3", 20.0),
    ]


@dataclass
class World:
    """Pods and member records that live by the table; applies a plan as a driver does."""

    now: float = NOW
    pods: dict[str, ObservedPod] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)
    incarnations: int = 0

    def see(self, name: str, event: PodEvent, **facts: object) -> None:
        before = self.pods[name]
        self.pods[name] = replace(before, state=advance(before.state, event), **facts)  # type: ignore[arg-type]

    def in_state(self, *states: PodState) -> list[str]:
        return sorted(name for name, p in self.pods.items() if p.state in states)

    def join(self, name: str) -> None:
        self.incarnations += 1
        self.records[name] = self.incarnations
        self.see(name, PodEvent.JOINED)

    def fail(self, name: str) -> None:
        """A crash: the record stays until its lease ends or the plan evicts it."""
        failures = self.pods[name].failures + 1
        self.see(name, PodEvent.ENDED_BADLY, failures=failures, failed_at=self.now)

    def apply(self, wanted: RPCGroup) -> Plan:
        result = plan(wanted, list(self.pods.values()), self.records, self.now)
        self.check(wanted, result.actions)
        for action in result.actions:
            match action:
                case Create(name, role, index):
                    self.pods[name] = ObservedPod(name, role, index, PENDING, self.now)
                case Drain(name, deadline, _):
                    self.see(name, PodEvent.DRAIN, drain_deadline=deadline)
                case Evict(name):
                    del self.records[name]
                case Delete(name, _):
                    self.see(name, PodEvent.DELETE)
                case Restart(name):
                    self.see(name, PodEvent.RESTART)
        return result

    def check(self, wanted: RPCGroup, planned: tuple[Action, ...]) -> None:
        """What must hold of any plan, whatever the history."""
        evicted = {a.name for a in planned if isinstance(a, Evict)}
        for name in evicted:
            observed = self.pods[name]
            late = observed.state is DRAINING and self.now >= observed.drain_deadline
            assert observed.state in FINISHED or late, f"evicted {observed}"
        for action in planned:
            if isinstance(action, Delete) and action.name in self.records:
                assert action.name in evicted, f"deleted while a member: {self.pods[action.name]}"
            if isinstance(action, Create):
                mine = {p.index for p in self.pods.values() if p.role == action.role}
                new = {a.index for a in planned if isinstance(a, Create) and a.role == action.role}
                assert action.index not in mine
                assert set(range(action.index)) <= mine | new, "a lower index was free"
        for role, (replicas, _) in wanted.roles().items():
            counted = {n for n, p in self.pods.items() if p.role == role and p.state in WANTED}
            leaving = {a.name for a in planned if isinstance(a, (Drain, Delete))} & counted
            active = {name for name in counted if self.pods[name].state is not SUCCEEDED}
            surplus = len(active) if wanted.spec.suspend else max(0, len(counted) - replicas)
            assert len(leaving) == surplus, "collateral"

    def settle(self, wanted: RPCGroup) -> None:
        """Nothing goes wrong any more: everything starts, joins, leaves and ends as asked."""
        for _ in range(200):
            before = (dict(self.pods), dict(self.records))
            for name, observed in list(self.pods.items()):
                self.step(name, observed.state)
            result = self.apply(wanted)
            self.now = max(self.now, result.wake_at or self.now)
            if (self.pods, self.records) == before and result.wake_at is None:
                return
        raise AssertionError(f"does not settle: {self.pods}")

    def step(self, name: str, state: PodState) -> None:
        if state is PENDING:
            self.see(name, PodEvent.STARTED)
        elif state is RUNNING:
            self.join(name)
        elif state is DRAINING:
            self.records.pop(name, None)
            self.see(name, PodEvent.LEAVING)
        elif state is LEFT:
            self.see(name, PodEvent.ENDED_WELL)
        elif state is TERMINATING:
            self.remove(name)

    def remove(self, name: str) -> None:
        self.see(name, PodEvent.REMOVED)
        del self.pods[name]


class RandomHistories(RuleBasedStateMachine):
    """Scale, kill, join, lose, leave, end and reconcile in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.wanted = group(3, servers=1, backoffLimit=100_000)

    def pick(self, data: st.DataObject, *states: PodState) -> str | None:
        names = self.world.in_state(*states)
        return data.draw(st.sampled_from(names)) if names else None

    @rule()
    def reconcile(self) -> None:
        self.world.apply(self.wanted)

    @rule(replicas=st.integers(0, 6), data=st.data())
    def scale(self, replicas: int, data: st.DataObject) -> None:
        named = data.draw(st.lists(st.sampled_from(sorted(self.world.pods) or ["x"]), max_size=2))
        self.wanted = self.wanted.scaled(replicas, named)

    @rule(seconds=st.sampled_from([0.5, 3.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        if name := self.pick(data, PENDING):
            self.world.see(name, PodEvent.STARTED)

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        if name := self.pick(data, RUNNING):
            self.world.join(name)

    @rule(data=st.data())
    def lose_the_record(self, data: st.DataObject) -> None:
        if name := self.pick(data, READY):
            self.world.records.pop(name)
            self.world.see(name, PodEvent.LOST)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        if name := self.pick(data, RUNNING, READY):
            self.world.fail(name)

    @rule(data=st.data())
    def crash_while_leaving(self, data: st.DataObject) -> None:
        if name := self.pick(data, DRAINING, LEFT):
            self.world.see(name, PodEvent.ENDED_BADLY)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if name := self.pick(data, DRAINING):
            self.world.records.pop(name, None)
            self.world.see(name, PodEvent.LEAVING)

    @rule(data=st.data())
    def be_removed(self, data: st.DataObject) -> None:
        if name := self.pick(data, TERMINATING):
            self.world.remove(name)

    @precondition(lambda self: self.world.in_state(READY))
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        name = self.pick(data, READY)
        if name and name.startswith("g-worker"):
            self.world.records.pop(name)
            self.world.see(name, PodEvent.ENDED_WELL)

    @invariant()
    def a_ready_pod_is_a_member(self) -> None:
        assert set(self.world.in_state(READY)) <= set(self.world.records)

    def teardown(self) -> None:
        self.world.settle(self.wanted)
        by_role = {role: self.world_of(role) for role in ("worker", "server")}
        assert len(by_role["worker"]) == self.wanted.spec.replicas
        assert len(by_role["server"]) == 1
        assert all(p.state in (READY, SUCCEEDED) for pods in by_role.values() for p in pods)
        assert set(self.world.records) == set(self.world.in_state(READY))
        self.world.settle(self.wanted.suspended())
        assert not self.world.in_state(*ALIVE)
        assert not self.world.records

    def world_of(self, role: str) -> list[ObservedPod]:
        return [p for p in self.world.pods.values() if p.role == role]


RandomHistories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRandomHistories = RandomHistories.TestCase


def test_a_group_that_has_ended_expires_when_it_says() -> None:
    done = [pod(0, SUCCEEDED)]
    first = plan(group(1, ttlSecondsAfterFinished=60), done, {}, NOW)
    assert first.expires_at == NOW + 60
    later = plan(group(1, ttlSecondsAfterFinished=60), done, {}, NOW + 30, first.status)
    assert later.expires_at == NOW + 60, "from its end, not from the last look"
    assert plan(group(1), done, {}, NOW).expires_at is None
    assert (
        plan(group(1, ttlSecondsAfterFinished=60), [pod(0, READY)], members("g-worker-0"), NOW).expires_at
        is None
    )
