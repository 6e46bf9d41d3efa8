"""How the tensors on devices between this worker and others have travelled: bytes by peer, direction and path."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final

from rpcgroup.wire.payloads import HOST, IPC, Payload

__all__ = ["PATHS", "RECEIVED", "SENT", "Traffic"]

PATHS: Final = {HOST: "host", IPC: "ipc"}
SENT: Final = "sent"
RECEIVED: Final = "received"

ByPath = dict[str, dict[str, int]]
"""Direction -> path -> bytes; what is 0 is not there."""


class Traffic:
    """Of one agent. Thread-safe.

    A message counts when it goes out, or when all that it carries is there. Which path a pair of workers has found
    is what it takes for all but small tensors: those go by the host always.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._total: Counter[tuple[str, str]] = Counter()
        self._peers: dict[str, Counter[tuple[str, str]]] = {}

    def add(self, peer: str, direction: str, payloads: Iterable[Payload]) -> None:
        sizes: Counter[tuple[str, str]] = Counter()
        for payload in payloads:
            sizes[direction, PATHS[payload.path]] += payload.size
        with self._lock:
            self._total += sizes
            self._peers[peer] = self._peers.get(peer, Counter()) + sizes

    def forget(self, peer: str) -> None:
        """It is no member any more. The total keeps what there was."""
        with self._lock:
            self._peers.pop(peer, None)

    @property
    def total(self) -> dict[str, int]:
        """By `DIRECTION_PATH`, each of them."""
        with self._lock:
            return {f"{d}_{p}": self._total[d, p] for d in (SENT, RECEIVED) for p in PATHS.values()}

    def by_peer(self, limit: int) -> dict[str, ByPath]:
        """Of those with the most bytes."""
        with self._lock:
            order = sorted(self._peers.items(), key=lambda entry: (-entry[1].total(), entry[0]))
        return {peer: _nested(counts) for peer, counts in order[:limit] if counts}


def _nested(counts: Counter[tuple[str, str]]) -> ByPath:
    nested: ByPath = {}
    for (direction, path), size in counts.items():
        nested.setdefault(direction, {})[path] = size
    return nested
