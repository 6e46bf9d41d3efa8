from __future__ import annotations

import pytest

from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.model import RPCGroupSpec
from rpcgroup.control.pod import ObservedPod
from rpcgroup.control.rollout import Bounds, bounds, making_way

READY, RUNNING, SUCCEEDED = PodState.READY, PodState.RUNNING, PodState.SUCCEEDED


def spec(unavailable: int | str, surge: int | str) -> RPCGroupSpec:
    update = {"maxUnavailable": unavailable, "maxSurge": surge}
    return RPCGroupSpec.model_validate({"rolloutStrategy": {"rollingUpdate": update}})


@pytest.mark.parametrize(
    ("unavailable", "surge", "outdated", "expected"),
    [
        (1, 0, 5, Bounds(most=10, least=9)),
        (0, 3, 5, Bounds(most=13, least=10)),
        (0, 3, 1, Bounds(most=11, least=10)),
        (0, 3, 0, Bounds(most=10, least=10)),
        ("25%", "25%", 9, Bounds(most=13, least=8)),
        ("100%", 0, 9, Bounds(most=10, least=0)),
        ("5%", 0, 9, Bounds(most=10, least=9)),
    ],
)
def test_bounds(unavailable: int | str, surge: int | str, outdated: int, expected: Bounds) -> None:
    assert bounds(spec(unavailable, surge), 10, outdated) == expected


def test_without_outdated_pods_nobody_makes_way() -> None:
    assert list(making_way([pod(n, READY, outdated=False) for n in range(3)], 0)) == []


def test_of_the_ready_as_many_as_the_bound_spares_and_all_that_serve_nobody() -> None:
    pods = [pod(0, READY), pod(1, RUNNING), pod(2, READY), pod(3, SUCCEEDED), pod(4, READY, outdated=False)]
    assert [p.index for p in making_way(pods, 2)] == [0, 1]
    assert [p.index for p in making_way(pods, 3)] == [1]
    assert [p.index for p in making_way(pods, 0)] == [0, 1, 2]


def pod(index: int, state: PodState, outdated: bool = True) -> ObservedPod:
    return ObservedPod(f"g-worker-{index}", "worker", index, state, created_at=0.0, outdated=outdated)
