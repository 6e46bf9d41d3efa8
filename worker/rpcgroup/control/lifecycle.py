"""The life of a pod, as one table.

A pod here is what a driver makes of a template: a Kubernetes pod or a local process. The planner asks for
actions that the table allows in the pod's state; a driver reports what it observes as events. A move that is
not in the table raises.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from rpcgroup.errors import RpcGroupError

__all__ = [
    "ALIVE",
    "FINISHED",
    "TRANSITIONS",
    "WANTED",
    "IllegalTransition",
    "PodEvent",
    "PodState",
    "advance",
]


class PodState(str, enum.Enum):
    PENDING = "pending"
    """Created; nothing runs yet."""
    RUNNING = "running"
    """Its worker runs and is not ready in the group: not joined yet, or its record is lost for the moment."""
    READY = "ready"
    """Its worker is a member and takes calls."""
    DRAINING = "draining"
    """Its worker is asked to leave and has not left."""
    LEFT = "left"
    """Its worker has left the group after a drain and finishes what is its own."""
    EXITED = "exited"
    """It ended after a drain."""
    TERMINATING = "terminating"
    """It is being deleted."""
    SUCCEEDED = "succeeded"
    """It ended by itself and well."""
    FAILED = "failed"
    """It ended by itself and badly; it may be started again."""
    GONE = "gone"
    """It is no more; its name and index are free."""


class PodEvent(str, enum.Enum):
    # Observed.
    STARTED = "started"
    JOINED = "joined"
    LOST = "lost"
    LEAVING = "leaving"
    ENDED_WELL = "ended well"
    ENDED_BADLY = "ended badly"
    REMOVED = "removed"
    # Done by a driver because the plan says so.
    DRAIN = "drain"
    RESTART = "restart"
    DELETE = "delete"


_S, _E = PodState, PodEvent

TRANSITIONS: Final[Mapping[PodState, Mapping[PodEvent, PodState]]] = MappingProxyType(
    {
        _S.PENDING: {
            _E.STARTED: _S.RUNNING,
            _E.ENDED_BADLY: _S.FAILED,
            _E.DELETE: _S.TERMINATING,
        },
        _S.RUNNING: {
            _E.JOINED: _S.READY,
            _E.DRAIN: _S.DRAINING,
            _E.ENDED_WELL: _S.SUCCEEDED,
            _E.ENDED_BADLY: _S.FAILED,
            _E.DELETE: _S.TERMINATING,
        },
        _S.READY: {
            _E.LOST: _S.RUNNING,
            _E.DRAIN: _S.DRAINING,
            _E.ENDED_WELL: _S.SUCCEEDED,
            _E.ENDED_BADLY: _S.FAILED,
        },
        _S.DRAINING: {
            _E.LEAVING: _S.LEFT,
            _E.ENDED_WELL: _S.EXITED,
            _E.ENDED_BADLY: _S.EXITED,
            _E.DELETE: _S.TERMINATING,
        },
        _S.LEFT: {
            _E.ENDED_WELL: _S.EXITED,
            _E.ENDED_BADLY: _S.EXITED,
            _E.DELETE: _S.TERMINATING,
        },
        _S.EXITED: {_E.DELETE: _S.TERMINATING},
        _S.SUCCEEDED: {_E.DELETE: _S.TERMINATING},
        _S.FAILED: {_E.RESTART: _S.PENDING, _E.DELETE: _S.TERMINATING},
        _S.TERMINATING: {_E.REMOVED: _S.GONE},
        _S.GONE: {},
    }
)

WANTED: Final = frozenset({_S.PENDING, _S.RUNNING, _S.READY, _S.SUCCEEDED, _S.FAILED})
"""Counts towards the wanted number: it works, has worked, or will be started again."""

ALIVE: Final = frozenset({_S.PENDING, _S.RUNNING, _S.READY, _S.DRAINING, _S.LEFT, _S.TERMINATING})
"""May hold a process."""

FINISHED: Final = frozenset({_S.EXITED, _S.SUCCEEDED, _S.FAILED})
"""Holds no process; what it had in the group is a remnant."""


class IllegalTransition(RpcGroupError):
    """A driver or the planner has a bug."""


def advance(state: PodState, event: PodEvent) -> PodState:
    """The state after `event`. Raises `IllegalTransition` for a move that the table does not have."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"a pod that is {state.value} cannot see the event {event.value!r}") from None
