"""What the operator knows of the API server's objects, kept up to date by watches and by its own writes.

Belongs to the event loop. Each object counts in its newest version: a watch that lags behind a write of our own
must not bring the state before it back, or the same work would be planned twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import ValidationError

from rpcgroup import contract
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.rules import contradictions
from rpcgroup_operator.members import GroupKey
from rpcgroup_operator.pods import Pod

__all__ = ["Group", "Store"]

GONE_KEPT: Final = 10_000

_SERVER_FIELDS: Final = frozenset({"name", "namespace", "labels", "annotations"})


@dataclass(frozen=True)
class Group:
    """An `RPCGroup` object. `spec` is None where it makes no sense, and `fault` says why."""

    key: GroupKey
    uid: str
    version: int
    generation: int
    deleting: bool
    spec: RPCGroup | None
    fault: str
    status: Mapping[str, Any] = field(hash=False)

    @classmethod
    def of(cls, raw: dict[str, Any], known: Group | None = None) -> Group:
        """`known` is an earlier state of it: of the same generation it has the same spec, and is not read again."""
        metadata = raw["metadata"]
        if known is not None and (known.uid, known.generation) == (
            metadata["uid"],
            metadata.get("generation"),
        ):
            spec, fault = known.spec, known.fault
        else:
            spec, fault = _parsed(raw)
        return cls(
            key=(metadata["namespace"], metadata["name"]),
            uid=metadata["uid"],
            version=int(metadata["resourceVersion"]),
            generation=metadata.get("generation", 0),
            deleting=metadata.get("deletionTimestamp") is not None,
            spec=spec,
            fault=fault,
            status=raw.get("status") or {},
        )


class Store:
    def __init__(self) -> None:
        self.groups: dict[GroupKey, Group] = {}
        self._pods: dict[GroupKey, dict[str, Pod]] = {}
        self._gone: dict[str, None] = {}
        """UIDs of pods whose end was seen, the oldest first: news of them from a slower source is old."""

    def pods(self, key: GroupKey) -> Mapping[str, Pod]:
        return self._pods.get(key, {})

    def all_pods(self) -> list[tuple[GroupKey, Pod]]:
        return [(key, pod) for key, pods in self._pods.items() for pod in pods.values()]

    def put_group(self, raw: dict[str, Any]) -> bool:
        """`raw` as the API server writes it. Whether it is news."""
        metadata = raw["metadata"]
        key = metadata["namespace"], metadata["name"]
        known = self.groups.get(key)
        if known is not None and known.uid == metadata["uid"]:
            if known.version >= int(metadata["resourceVersion"]):
                return False
            self.groups[key] = Group.of(raw, known)
        else:
            self.groups[key] = Group.of(raw)
        return True

    def drop_group(self, key: GroupKey, uid: str) -> None:
        known = self.groups.get(key)
        if known is not None and known.uid == uid:
            del self.groups[key]

    def put_pod(self, key: GroupKey, pod: Pod) -> bool:
        """Whether it is news."""
        known = self.pods(key).get(pod.name)
        if pod.uid in self._gone:
            return False
        if known is not None and known.uid == pod.uid and known.version >= pod.version:
            return False
        self._pods.setdefault(key, {})[pod.name] = pod
        return True

    def put_raw_pod(self, raw: dict[str, Any]) -> bool:
        pod = Pod.of(raw)
        return pod is not None and self.put_pod(group_of_pod(raw), pod)

    def mark_deleting(self, key: GroupKey, name: str, uid: str) -> None:
        """The API server has taken its deletion; the watch will say so too."""
        pod = self.pods(key).get(name)
        if pod is not None and pod.uid == uid:
            self._pods[key][name] = replace(pod, deleting=True)

    def drop_pod(self, key: GroupKey, name: str, uid: str) -> None:
        self._gone[uid] = None
        while len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        pods = self._pods.get(key, {})
        if name in pods and pods[name].uid == uid:
            del pods[name]
            if not pods:
                del self._pods[key]


def group_of_pod(raw: dict[str, Any]) -> GroupKey:
    metadata = raw["metadata"]
    return metadata["namespace"], metadata["labels"][contract.LABEL_GROUP]


def _parsed(raw: dict[str, Any]) -> tuple[RPCGroup | None, str]:
    """The API server has checked it by the same rules; an older definition there may have let something through."""
    metadata = {name: value for name, value in raw["metadata"].items() if name in _SERVER_FIELDS}
    document: dict[str, Any] = {k: raw[k] for k in ("apiVersion", "kind", "spec") if k in raw}
    document["metadata"] = metadata
    try:
        group = RPCGroup.model_validate(document)
    except ValidationError as exc:
        error = exc.errors()[0]
        return None, f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
    faults = contradictions(group)
    return (None, "; ".join(faults)) if faults else (group, "")
