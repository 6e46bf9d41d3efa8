"""The gatherings of this process: who has given what, whether all have it, and the wait for that.

The worker with the smallest name leads each: the others bring it theirs, and it tells them all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from rpcgroup.errors import DrainedError, PeerUnreachableError, UnknownWorkerError
from rpcgroup.group import Group

__all__ = ["AllGatherStates", "Gatherings", "wait_for"]

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks whether those who are waited for live."""


class AllGatherStates:
    """One gathering: what has come, and whether all have it."""

    def __init__(self) -> None:
        self.gathered_objects: dict[str, Any] = {}
        self.proceed_signal = threading.Event()


class Gatherings:
    """Those that are under way. A part may come before this worker's program has begun the gathering itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._begun: dict[str, int] = {}
        """How many, by the names of those who take part."""
        self._states: dict[str, AllGatherStates] = {}

    def __len__(self) -> int:
        return len(self._states)

    def begin(self, names: Collection[str]) -> tuple[str, AllGatherStates]:
        """The next of these workers: all who take part count alike, so each finds the same id."""
        joined = "".join(sorted(names))
        with self._lock:
            number = self._begun.get(joined, 0)
            self._begun[joined] = number + 1
            sequence_id = f"{joined}{number}"
            return sequence_id, self._state(sequence_id)

    def end(self, sequence_id: str) -> None:
        with self._lock:
            del self._states[sequence_id]

    def give(self, sequence_id: str, worker_name: str, obj: Any, names: Collection[str]) -> None:
        """To the leader: here is mine. Raises `AssertionError` for who does not take part, or has given before."""
        if worker_name not in names:
            raise AssertionError(f"{worker_name} is not expected by leader.")
        with self._lock:
            state = self._state(sequence_id)
            if worker_name in state.gathered_objects:
                raise AssertionError(f"{worker_name} reported intent sequence id {sequence_id} twice.")
            state.gathered_objects[worker_name] = obj
            if set(names) == state.gathered_objects.keys():
                state.proceed_signal.set()

    def take(self, sequence_id: str, objects: dict[str, Any]) -> None:
        """From the leader: these are all. Raises `AssertionError` the second time."""
        with self._lock:
            state = self._state(sequence_id)
            if state.proceed_signal.is_set():
                raise AssertionError(f"Termination signal sequence id {sequence_id} got set twice.")
            state.gathered_objects = objects
            state.proceed_signal.set()

    def missing(self, state: AllGatherStates, names: Collection[str]) -> list[str]:
        with self._lock:
            return sorted(set(names) - state.gathered_objects.keys())

    def _state(self, sequence_id: str) -> AllGatherStates:
        return self._states.setdefault(sequence_id, AllGatherStates())


def wait_for(
    signal: threading.Event, timeout: float | None, awaited: Callable[[], list[str]], group: Group | None
) -> bool:
    """Until it is set, or none of those who are awaited can come any more; false after `timeout` seconds.

    Without a group there is an agent of the program's own, who does not tell who lives.
    """
    if group is None:
        return signal.wait(timeout)
    group.agent.reactor.step_aside()
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while not signal.wait(min(LOOK_INTERVAL, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
            return False
        if all(_is_lost(group, name) for name in awaited()):
            break
    return True


def _is_lost(group: Group, name: str) -> bool:
    try:
        return group.collectives.is_lost(group.agent.peer(name).record.name)
    except (DrainedError, PeerUnreachableError, UnknownWorkerError):
        return True
