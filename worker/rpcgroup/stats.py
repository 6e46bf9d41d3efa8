"""What `status` and `top` show of a worker, published under its lease."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, Final

from rpcgroup.agent.agent import Agent
from rpcgroup.membership.rendezvous import Rendezvous

__all__ = ["StatsPublisher"]

PEERS_SHOWN: Final = 32
"""With whom tensors on devices were exchanged: the text must stay small in a large group."""


class StatsPublisher:
    """Writes every `interval` seconds, and only what has changed: an idle group writes nothing."""

    def __init__(self, agent: Agent, rendezvous: Rendezvous, interval: float) -> None:
        self._agent = agent
        self._rendezvous = rendezvous
        self._interval = interval
        self._last: bytes = b""
        self._calls = 0
        self._at = 0.0
        self._closed = False
        self._lock = threading.Lock()  # one publication at a time, none after close
        self.progress: dict[str, Any] = {}

    def start(self) -> None:
        self._at = time.monotonic()
        self._agent.monitor.call_later(0.0, self._publish)

    def close(self) -> None:
        """Publish the last state; nothing afterwards."""
        self._publish()
        self._closed = True

    def _publish(self) -> None:
        with self._lock:
            if self._closed or self._agent.closing:
                return
            stats = json.dumps(self._snapshot(), default=str).encode()
            if stats != self._last:
                self._last = stats
                self._rendezvous.put_stats(stats)
        self._agent.monitor.call_later(self._interval, self._publish)

    def _snapshot(self) -> dict[str, Any]:
        agent = self._agent
        now = time.monotonic()
        raw = agent.stats()
        calls = int(raw["calls"])
        rate = (calls - self._calls) / max(now - self._at, 1e-3) if self._calls else 0.0
        self._calls, self._at = calls, now
        counts = agent.references.counts()
        devices = agent.accelerator.traffic.by_peer(PEERS_SHOWN) if agent.accelerator is not None else {}
        return {
            "calls": calls,
            "calls_per_s": round(rate, 1),
            "in_flight": int(raw["in_flight"]),
            "pending": int(raw["pending"]),
            "threads": int(raw["threads"]),
            "rrefs": counts.owner_rrefs + counts.user_rrefs,
            "progress": self.progress,
            **({"devices": devices} if devices else {}),
        }
