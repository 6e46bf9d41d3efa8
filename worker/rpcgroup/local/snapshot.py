"""How a local group stands, as plain data: what `status -o json` prints and the views draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rpcgroup.control.model import RPCGroup
from rpcgroup.control.status import GroupStatus
from rpcgroup.local.observer import Sighting
from rpcgroup.local.pod import LocalPod

__all__ = ["snapshot_of"]


def snapshot_of(
    group: RPCGroup,
    pods: Iterable[LocalPod],
    status: GroupStatus,
    sighting: Sighting,
    events: Iterable[tuple[float, str, str]],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """`facts` are those of the driver that do not change. Times are unix seconds."""
    return {
        "name": group.metadata.name,
        "namespace": group.metadata.namespace,
        **facts,
        "epoch": sighting.view.epoch,
        "rendezvousAwaySince": sighting.away_since,
        "spec": {
            "replicas": group.spec.replicas,
            "minReplicas": group.spec.min_replicas,
            "maxReplicas": group.spec.max_replicas,
            "suspend": group.spec.suspend,
        },
        "status": status.to_dict(),
        "workers": [worker(pod, sighting) for pod in sorted(pods, key=lambda p: (p.role, p.index))],
        "events": [{"time": when, "subject": subject, "text": text} for when, subject, text in events],
    }


def worker(pod: LocalPod, sighting: Sighting) -> dict[str, Any]:
    record = sighting.members.get(pod.name)
    return {
        "name": pod.name,
        "role": pod.role,
        "state": pod.state.value,
        "pid": pod.process.pid if pod.process else None,
        "restarts": pod.restarts,
        "exitStatus": pod.exit_status,
        "address": record.address if record else "",
        "incarnation": record.incarnation if record else 0,
        "stats": sighting.stats.get(pod.name, {}),
    }
