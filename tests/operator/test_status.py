from __future__ import annotations

from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.status import Condition, GroupStatus, MemberStatus
from rpcgroup_operator.status import MEMBERS_LISTED, rfc3339, status_from, status_to


def status(count: int, ready: int) -> GroupStatus:
    members = tuple(
        MemberStatus(
            f"g-worker-{n:04}", "worker", PodState.READY if n < ready else PodState.RUNNING, n % 3, n + 1
        )
        for n in range(count)
    )
    condition = Condition("Available", True, "AllReady", "every wanted pod is ready", 1_700_000_000.0)
    return GroupStatus(count, ready, (condition,), members)


def test_there_and_back() -> None:
    before = status(3, 2)
    assert status_from(status_to(before, 7, "a=b", 3)) == before


def test_nothing_written_is_nothing_known() -> None:
    assert status_from({}) is None


def test_a_large_group_names_those_that_are_not_ready() -> None:
    written = status_to(status(1000, 950), 1, "a=b", 1000)
    assert len(written["members"]) == MEMBERS_LISTED
    assert sum(m["state"] == "running" for m in written["members"]) == 50
    assert written["replicas"] == 1000


def test_times_are_whole_seconds() -> None:
    assert rfc3339(1_700_000_000.9) == "2023-11-14T22:13:20Z"
