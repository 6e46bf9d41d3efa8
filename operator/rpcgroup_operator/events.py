"""Kubernetes Events of a group: what `kubectl describe` shows. Best effort, never in the way of the work."""

from __future__ import annotations

import asyncio
import logging
import secrets
from datetime import datetime, timezone
from typing import Final

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup_operator import paths
from rpcgroup_operator.api import KubeApi, Object
from rpcgroup_operator.store import Group

__all__ = ["Events"]

WAITING: Final = 1000
"""Events not yet written; more than that in a burst are dropped, the log has them."""
MESSAGE_LIMIT: Final = 1024
"""Characters: the API server's own."""

_log = logging.getLogger(__name__)


class Events:
    def __init__(self, api: KubeApi, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._queue: asyncio.Queue[tuple[str, Object]] = asyncio.Queue(WAITING)

    def normal(self, group: Group, reason: str, note: str) -> None:
        self._put(group, "Normal", reason, note)

    def warn(self, group: Group, reason: str, note: str) -> None:
        self._put(group, "Warning", reason, note)

    async def run(self) -> None:
        """Writes them one after the other, until it is cancelled."""
        while True:
            path, body = await self._queue.get()
            try:
                await self._api.create(path, body)
            except Exception as exc:
                _log.debug("an event was not written: %s", exc)

    def _put(self, group: Group, kind: str, reason: str, note: str) -> None:
        namespace, name = group.key
        _log.info("%s/%s %s: %s", namespace, name, reason, note)
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{secrets.token_hex(6)}", "namespace": namespace},
            "eventTime": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": kind,
            "reason": reason,
            "action": reason,
            "note": note[:MESSAGE_LIMIT],
            "reportingController": "rpcgroup.dev/operator",
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": namespace,
                "name": name,
                "uid": group.uid,
            },
        }
        try:
            self._queue.put_nowait((paths.events(namespace), body))
        except asyncio.QueueFull:
            pass
