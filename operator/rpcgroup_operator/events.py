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

NOTES: Final = 10
"""Named in one Event; of more it says how many."""
MESSAGE_LIMIT: Final = 1024
"""Characters: the API server's own."""
PAUSE: Final = 1.0
"""Seconds between two rounds: what happens meanwhile is merged."""

_log = logging.getLogger(__name__)


class Events:
    """What is said of one group for one reason between two rounds becomes one Event: a thousand pods, a few."""

    def __init__(self, api: KubeApi, instance: str, pause: float = PAUSE) -> None:
        self._api = api
        self._instance = instance
        self._pause = pause
        self._waiting: dict[
            tuple[str, str, str], tuple[Group, list[str]]
        ] = {}  # bounded by groups and reasons
        self._some = asyncio.Event()

    def normal(self, group: Group, reason: str, note: str) -> None:
        self._put(group, "Normal", reason, note)

    def warn(self, group: Group, reason: str, note: str) -> None:
        self._put(group, "Warning", reason, note)

    async def run(self) -> None:
        """Writes them one after the other, until it is cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            waiting, self._waiting = self._waiting, {}
            for (_, kind, reason), (group, notes) in waiting.items():
                try:
                    body = self._event(group, kind, reason, merged(notes))
                    await self._api.create(paths.events(group.key[0]), body)
                except Exception as exc:
                    _log.debug("an event was not written: %s", exc)
            await asyncio.sleep(self._pause)

    def _put(self, group: Group, kind: str, reason: str, note: str) -> None:
        _log.info("%s/%s %s: %s", *group.key, reason, note)
        self._waiting.setdefault((group.uid, kind, reason), (group, []))[1].append(note)
        self._some.set()

    def _event(self, group: Group, kind: str, reason: str, note: str) -> Object:
        namespace, name = group.key
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.{secrets.token_hex(6)}", "namespace": namespace},
            "eventTime": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": kind,
            "reason": reason,
            "action": reason,
            "note": note,
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


def merged(notes: list[str]) -> str:
    notes = list(dict.fromkeys(notes))
    more = f"; and {len(notes) - NOTES} more" if len(notes) > NOTES else ""
    return "; ".join(notes[:NOTES])[: MESSAGE_LIMIT - len(more)] + more
