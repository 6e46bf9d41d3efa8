"""What the liveness probe asks: whether reconciling goes on. A process that answers may still have hung."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import kopf

from rpcgroup_operator.work_queue import WorkQueue

__all__ = ["HUNG_SECONDS", "register"]

HUNG_SECONDS: Final = 60.0
"""Without one reconcile done while there is work: the probe fails."""


def register(
    registry: kopf.OperatorRegistry, queues: Sequence[WorkQueue], hung_seconds: float = HUNG_SECONDS
) -> None:
    """`queues` are those at work at the time of a probe: none while another operator leads."""
    # Permanent: any other error kopf would try again before it answers at all.
    on_probe = kopf.on.probe(id="reconcile", registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    on_probe(_Progress(queues, hung_seconds).check)


class _Progress:
    def __init__(self, queues: Sequence[WorkQueue], hung_seconds: float) -> None:
        self._queues = queues
        self._hung_seconds = hung_seconds
        self._done = 0
        self._since = time.monotonic()

    async def check(self, **_: Any) -> str:
        """Raises `RuntimeError` where nothing was done for so long though there is work."""
        done = sum(queue.done for queue in self._queues)
        if done != self._done or not any(queue.busy for queue in self._queues):
            self._done, self._since = done, time.monotonic()
        if time.monotonic() - self._since > self._hung_seconds:
            raise RuntimeError(f"no reconcile has ended for {self._hung_seconds:g} s")
        return "working" if self._queues else "waiting for the lease"
