"""kopf's part: it watches, and every event wakes the reconcile of one group. Nothing is decided here.

All of them are coroutines: kopf runs plain functions in threads, and the store belongs to the event loop. The index
handlers keep the store: kopf calls no other handler before all of them have seen what there was at the
start, so the first plan already sees the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from rpcgroup.contract import API_VERSION, LABEL_GROUP, PLURAL
from rpcgroup_operator.members import GroupKey
from rpcgroup_operator.pods import Pod
from rpcgroup_operator.store import Group, Store, group_of_pod

__all__ = ["register"]

_GROUP, _VERSION = API_VERSION.split("/")


def register(registry: kopf.OperatorRegistry, store: Store, wake: Callable[[GroupKey], None]) -> None:
    """`wake(key)` is called after each change of a group or of one of its pods."""

    @kopf.index(_GROUP, _VERSION, PLURAL, registry=registry)
    async def remember_group(body: kopf.Body, **_: Any) -> None:
        store.put_group(Group.of(dict(body)))

    @kopf.index("", "v1", "pods", labels={LABEL_GROUP: kopf.PRESENT}, registry=registry)
    async def remember_pod(body: kopf.Body, **_: Any) -> None:
        raw = dict(body)
        pod = Pod.of(raw)
        if pod is not None:
            store.put_pod(group_of_pod(raw), pod)

    @kopf.on.event(_GROUP, _VERSION, PLURAL, registry=registry)
    async def group_changed(event: kopf.RawEvent, **_: Any) -> None:
        group = Group.of(dict(event["object"]))
        if event["type"] == "DELETED":
            store.drop_group(group.key, group.uid)
        wake(group.key)

    @kopf.on.event("", "v1", "pods", labels={LABEL_GROUP: kopf.PRESENT}, registry=registry)
    async def pod_changed(event: kopf.RawEvent, **_: Any) -> None:
        raw = dict(event["object"])
        key, pod = group_of_pod(raw), Pod.of(raw)
        if event["type"] == "DELETED" and pod is not None:
            store.drop_pod(key, pod.name, pod.uid)
        wake(key)
