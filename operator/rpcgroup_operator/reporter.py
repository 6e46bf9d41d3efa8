"""Writes what a group's status says, when it says something new, and not more often than it is worth.

A change of a condition goes at once. Numbers and members change with every pod: they go twice a second for one
group, and more rarely the more groups are on the move, or a burst of pods would be a burst of writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rpcgroup_operator import paths
from rpcgroup_operator.api import KubeApi
from rpcgroup_operator.members import GroupKey
from rpcgroup_operator.store import Group, Store

__all__ = ["Reporter"]

GROUP_SECONDS: Final = 0.5
"""Between two writes of one group's numbers."""
ALL_SECONDS: Final = 0.1
"""Between two writes of any groups' numbers."""

Status = Mapping[str, Any]


class Reporter:
    def __init__(self, api: KubeApi, store: Store) -> None:
        self._api = api
        self._store = store
        self._due: dict[GroupKey, float] = {}
        """The time (unix seconds) that is kept for each group whose numbers wait to be written."""
        self._written: dict[GroupKey, float] = {}
        self._free = 0.0
        """From when on a time can be kept."""

    async def report(self, group: Group, status: Status, now: float) -> float | None:
        """Seconds after which to try again, where something new was kept back."""
        if status == group.status:
            self._due.pop(group.key, None)  # a time that is not used is none that may be used later
            return None
        if findings(status) == findings(group.status):
            wait = self._wait(group.key, now)
            if wait > 0:
                return wait
        self._due.pop(group.key, None)
        self._written[group.key] = now
        body = {"metadata": {"uid": group.uid}, "status": status}
        raw = await self._api.merge(paths.group(*group.key) + "/status", body)
        self._store.put_group(raw)
        return None

    def forget(self, key: GroupKey) -> None:
        self._due.pop(key, None)
        self._written.pop(key, None)

    def _wait(self, key: GroupKey, now: float) -> float:
        if key not in self._due:
            self._due[key] = max(now, self._free, self._written.get(key, 0.0) + GROUP_SECONDS)
            self._free = max(now, self._free) + ALL_SECONDS
        return self._due[key] - now


def findings(status: Status) -> list[tuple[Any, ...]]:
    """What its conditions say, and of which generation."""
    conditions = status.get("conditions") or []
    return [(c["type"], c["status"], c.get("reason"), c.get("observedGeneration")) for c in conditions]
