"""A group's status as the resource says it, and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.status import Condition, GroupStatus, MemberStatus
from rpcgroup_operator.pods import unix_time

__all__ = ["MEMBERS_LISTED", "rfc3339", "status_from", "status_to"]

MEMBERS_LISTED: Final = 200
"""Members named in a status: those that are not ready first. An object in etcd has to stay below 1.5 MB."""


def status_to(status: GroupStatus, generation: int, selector: str, updated: int) -> dict[str, Any]:
    members = sorted(status.members, key=lambda m: (m.state is PodState.READY, m.role, m.name))
    listed = sorted(members[:MEMBERS_LISTED], key=lambda m: m.name)
    return {
        "observedGeneration": generation,
        "replicas": status.replicas,
        "readyReplicas": status.ready_replicas,
        "updatedReplicas": updated,
        "selector": selector,
        "conditions": [
            {
                "type": c.type,
                "status": str(c.status),
                "reason": c.reason,
                "message": c.message,
                "lastTransitionTime": rfc3339(c.since),
                "observedGeneration": generation,
            }
            for c in status.conditions
        ],
        "members": [
            {
                "name": m.name,
                "role": m.role,
                "state": m.state.value,
                "failures": m.failures,
                "incarnation": m.incarnation,
            }
            for m in listed
        ],
    }


def status_from(raw: Mapping[str, Any]) -> GroupStatus | None:
    """What was written last; None where nothing was."""
    if "conditions" not in raw:
        return None
    conditions = tuple(
        Condition(
            c["type"],
            c["status"] == "True",
            c.get("reason", ""),
            c.get("message", ""),
            unix_time(c.get("lastTransitionTime")),
        )
        for c in raw["conditions"]
    )
    members = tuple(
        MemberStatus(
            m["name"],
            m.get("role", ""),
            PodState(m.get("state", "gone")),
            m.get("failures", 0),
            m.get("incarnation", 0),
        )
        for m in raw.get("members") or []
    )
    return GroupStatus(raw.get("replicas", 0), raw.get("readyReplicas", 0), conditions, members)


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
