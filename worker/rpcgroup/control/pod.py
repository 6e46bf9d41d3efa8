"""A pod as the planner sees it, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rpcgroup.control.lifecycle import PodState

__all__ = [
    "BACKOFF_CAP",
    "BACKOFF_START",
    "HEALTHY_AFTER",
    "ObservedPod",
    "backoff",
    "failures_in_a_row",
    "pod_name",
]

BACKOFF_START: Final = 1.0
"""Seconds between the first failure and the restart; doubled with each failure in a row."""
BACKOFF_CAP: Final = 300.0
"""Seconds; the longest pause, that of the kubelet."""
HEALTHY_AFTER: Final = 600.0
"""Seconds of running after which earlier failures are forgotten, as the kubelet does."""


@dataclass(frozen=True)
class ObservedPod:
    """`failures` are those in a row; times are unix seconds."""

    name: str
    role: str
    index: int
    state: PodState
    created_at: float
    failures: int = 0
    failed_at: float = 0.0
    drain_deadline: float = 0.0
    deletion_cost: int = 0
    outdated: bool = False
    """Made from a template that its role no longer has."""


def pod_name(group: str, role: str, index: int) -> str:
    return f"{group}-{role}-{index}"


def backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row."""
    exponent = min(max(failures - 1, 0), 16)
    return min(BACKOFF_CAP, BACKOFF_START * 2.0**exponent)


def failures_in_a_row(before: int, ran_for: float) -> int:
    """The count after one more failure of a pod that ran `ran_for` seconds."""
    return 1 if ran_for >= HEALTHY_AFTER else before + 1
