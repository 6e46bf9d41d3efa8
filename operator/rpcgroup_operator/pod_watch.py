"""The pods of all groups, kept in the store: list, watch from there, list again when the watch has lost its place.

The rules are those of client-go's reflector. kopf watches the groups; for pods, of which there are a hundred times
as many, its task, copies and comparison for each event are most of what an operator would do (ADR 0013).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlencode

from rpcgroup import contract
from rpcgroup_operator import paths
from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.members import GroupKey
from rpcgroup_operator.pods import Pod
from rpcgroup_operator.store import Store, group_of_pod

__all__ = ["PodWatch"]

PAGE: Final = 500
"""Pods in one answer of a list."""
WATCH_SECONDS: Final = 300
"""After that long the API server ends a watch in good order."""
PAUSE_FIRST: Final = 0.1
PAUSE_LAST: Final = 30.0

_GONE: Final = 410
_log = logging.getLogger(__name__)


class PodWatch:
    """`on_change(group)` is called after each change of one of the group's pods. One watch for one namespace."""

    def __init__(
        self, api: KubeApi, store: Store, on_change: Callable[[GroupKey], None], namespace: str = ""
    ) -> None:
        """`namespace`: empty for all."""
        self._api = api
        self._store = store
        self._on_change = on_change
        self._namespace = namespace
        self._version = ""
        self.listed = asyncio.Event()
        """What there was at the start is in the store."""

    async def run(self) -> None:
        """Until it is cancelled."""
        pause = PAUSE_FIRST
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                pause = PAUSE_FIRST
            except (ApiError, OSError, asyncio.TimeoutError) as exc:
                if isinstance(exc, ApiError):
                    self._version = ""
                if not (isinstance(exc, ApiError) and exc.status == _GONE):
                    _log.warning("the watch of pods: %s; again in %.1f s", exc or type(exc).__name__, pause)
                    await asyncio.sleep(pause)
                    pause = min(PAUSE_LAST, pause * 2)

    async def _list(self) -> None:
        """All there are; what the store has beyond them is gone."""
        found: dict[str, tuple[GroupKey, Pod]] = {}
        page: Mapping[str, str] = {}
        while True:
            answer = await self._api.get(self._path({"limit": str(PAGE), **page}))
            for raw in answer["items"]:
                pod = Pod.of(raw)
                if pod is not None:
                    found[pod.uid] = group_of_pod(raw), pod
            if not answer["metadata"].get("continue"):
                break
            page = {"continue": answer["metadata"]["continue"]}
        version = answer["metadata"]["resourceVersion"]
        for key, pod in self._store.all_pods():
            # One that is newer than the list was made after it.
            if self._is_mine(key) and pod.uid not in found and pod.version <= int(version):
                self._drop(key, pod)
        for key, pod in found.values():
            self._put(key, pod)
        self._version = version
        self.listed.set()

    async def _watch(self) -> None:
        """Follow the changes until the API server ends the watch. Raises what ended it otherwise."""
        query = {
            "watch": "true",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async for event in self._api.watch(self._path(query)):
            kind, raw = event["type"], event["object"]
            if kind == "ERROR":
                raise ApiError(raw.get("code", 0), raw.get("reason", ""), raw.get("message", ""))
            if kind != "BOOKMARK":
                self._changed(kind, raw)
            self._version = raw["metadata"]["resourceVersion"]

    def _changed(self, kind: str, raw: Object) -> None:
        pod = Pod.of(raw)
        if pod is None:
            return
        key = group_of_pod(raw)
        if kind == "DELETED":
            self._drop(key, pod)
        else:
            self._put(key, pod)

    def _put(self, key: GroupKey, pod: Pod) -> None:
        if self._store.put_pod(key, pod):
            self._on_change(key)

    def _drop(self, key: GroupKey, pod: Pod) -> None:
        self._store.drop_pod(key, pod.name, pod.uid)
        self._on_change(key)

    def _is_mine(self, key: GroupKey) -> bool:
        return self._namespace in ("", key[0])

    def _path(self, query: Mapping[str, str]) -> str:
        where = paths.pods(self._namespace) if self._namespace else paths.ALL_PODS
        return f"{where}?{urlencode({'labelSelector': contract.LABEL_GROUP, **query})}"
