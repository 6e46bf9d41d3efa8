"""kopf's part: it watches the groups, and every event wakes the reconcile of one. Nothing is decided here.

All of them are coroutines: kopf runs plain functions in threads, and the store belongs to the event loop. The index
handler keeps the store: kopf calls no other handler before it has seen what there was at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from rpcgroup.contract import API_VERSION, PLURAL
from rpcgroup_operator.members import GroupKey
from rpcgroup_operator.store import Store

__all__ = ["NothingKept", "register"]

_GROUP, _VERSION = API_VERSION.split("/")


def register(registry: kopf.OperatorRegistry, store: Store, wake: Callable[[GroupKey], None]) -> None:
    """`wake(key)` is called after each change of a group."""

    @kopf.index(_GROUP, _VERSION, PLURAL, registry=registry)
    async def remember_group(body: kopf.Body, **_: Any) -> None:
        store.put_group(dict(body))

    @kopf.on.event(_GROUP, _VERSION, PLURAL, registry=registry)
    async def group_changed(event: kopf.RawEvent, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        key = metadata["namespace"], metadata["name"]
        if event["type"] == "DELETED":
            store.drop_group(key, metadata["uid"])
        wake(key)


class NothingKept(kopf.DiffBaseStorage):
    """No handler here is told what has changed, so no copy of an object need be made and compared."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None
