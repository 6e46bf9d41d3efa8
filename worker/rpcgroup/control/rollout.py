"""A change of template: who makes way for whom, and how many at once. Pure.

The bounds are those of a Deployment: `maxUnavailable` of the wanted number may be missing, `maxSurge` may be there
beyond it, while pods of the old template are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.model import RPCGroupSpec
from rpcgroup.control.pod import ObservedPod

__all__ = ["Bounds", "bounds", "making_way"]


@dataclass(frozen=True)
class Bounds:
    """`most` pods at most and `least` ready ones at least, while a role is rolled out."""

    most: int
    least: int


def bounds(spec: RPCGroupSpec, replicas: int, outdated: int) -> Bounds:
    """Percentages are of `replicas`: of the missing rounded down, of the surplus up. One of the two is not 0."""
    update = spec.rollout_strategy.rolling_update
    missing = share(update.max_unavailable, replicas, math.floor)
    surplus = share(update.max_surge, replicas, math.ceil)
    if not missing and not surplus:
        missing = 1
    return Bounds(most=replicas + min(surplus, outdated), least=max(0, replicas - missing))


def making_way(pods: Sequence[ObservedPod], least: int) -> Iterator[ObservedPod]:
    """Of `pods` (in the order in which they should go) the outdated ones that may go now.

    Whoever is not ready serves nobody and may go; of the ready ones, as many as leave `least` ready.
    """
    spare = sum(p.state is PodState.READY for p in pods) - least
    for pod in pods:
        if not pod.outdated or pod.state is PodState.SUCCEEDED:
            continue
        if pod.state is PodState.READY:
            if spare <= 0:
                continue
            spare -= 1
        yield pod


def share(amount: int | str, whole: int, rounded: object) -> int:
    """A number, or a percentage of `whole`."""
    if isinstance(amount, int):
        return amount
    assert callable(rounded)
    return int(rounded(int(amount.removesuffix("%")) * whole / 100))
