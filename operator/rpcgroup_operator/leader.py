"""One operator works, the others watch: a Lease says who (kopf's own peering is no election, its docs say so).

The rules are those of client-go's `leaderelection`: a holder renews; who waits takes over once it has seen the
same renewal for the whole duration, by its own clock, so that clocks need not agree. The client library's election
is not used: in 37.0.2 its lock for Leases refuses its own arguments.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any, Final

from rpcgroup_operator import paths
from rpcgroup_operator.api import ApiError, KubeApi, Object

__all__ = ["Election"]

LEASE_SECONDS: Final = 15
"""After that long without a renewal another takes over."""
RENEW_SECONDS: Final = 10
"""After that long without a renewal the holder gives up: before another may take over."""
RETRY_SECONDS: Final = 2

_log = logging.getLogger(__name__)


class Election:
    """Of one Lease, for the candidate `identity`."""

    def __init__(self, api: KubeApi, namespace: str, name: str, identity: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: Object = {}
        self._seen_at = 0.0

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then run `work` for as long as it is kept; returns when it was lost.

        Who has lost it must end: an action of its own may still be on its way, and a fresh process has none.
        """
        _log.info("waiting for the lease %s/%s", self._namespace, self._name)
        while not await self._try():
            await asyncio.sleep(RETRY_SECONDS)
        _log.info("leading as %s", self._identity)
        working = asyncio.ensure_future(work())
        holding = asyncio.create_task(self._hold())
        try:
            done, _ = await asyncio.wait({working, holding}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if holding in done:
                _log.error("the lease %s/%s was lost", self._namespace, self._name)
        finally:
            await _to_its_end(self._end(working, holding))

    async def _end(self, working: asyncio.Future[None], holding: asyncio.Future[None]) -> None:
        for task in (working, holding):
            task.cancel()
        await asyncio.gather(working, holding, return_exceptions=True)
        if holding.cancelled():
            await self._release()

    async def _hold(self) -> None:
        renewed = time.monotonic()
        while time.monotonic() - renewed < RENEW_SECONDS:
            await asyncio.sleep(RETRY_SECONDS)
            began = time.monotonic()
            if await self._try():
                renewed = began

    async def _try(self) -> bool:
        """Take or renew the lease; false where it is another's, or nobody answers."""
        try:
            return await asyncio.wait_for(self._take(), RENEW_SECONDS / 2)
        except ApiError as exc:
            if exc.status not in (404, 409):  # gone, or written by another, just now
                _log.warning("the lease %s/%s: %s", self._namespace, self._name, exc)
        except (OSError, asyncio.TimeoutError) as exc:
            _log.warning(
                "the lease %s/%s: the API server does not answer: %s", self._namespace, self._name, exc
            )
        return False

    async def _take(self) -> bool:
        path = paths.lease(self._namespace, self._name)
        try:
            lease = await self._api.get(path)
        except ApiError as exc:
            if exc.status != 404:
                raise
            await self._api.create(paths.leases(self._namespace), self._lease(_now(), 0))
            return True
        spec = lease.get("spec") or {}
        if spec != self._seen:
            self._seen, self._seen_at = spec, time.monotonic()
        holder = spec.get("holderIdentity")
        mine = holder == self._identity
        duration = spec.get("leaseDurationSeconds") or LEASE_SECONDS
        if holder and not mine and time.monotonic() - self._seen_at < duration:
            return False
        acquired = spec.get("acquireTime") if mine else None
        transitions = int(spec.get("leaseTransitions") or 0) + (not mine)
        body = self._lease(acquired or _now(), transitions)
        body["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        self._seen = (await self._api.replace(path, body)).get("spec") or {}
        self._seen_at = time.monotonic()
        return True

    async def _release(self) -> None:
        """In good order: the next one need not wait for the lease to run out."""
        path = paths.lease(self._namespace, self._name)
        try:
            lease = await self._api.get(path)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._api.replace(path, lease)
        except (ApiError, OSError, asyncio.TimeoutError) as exc:
            _log.info("the lease was not given back: %s", exc)

    def _lease(self, acquired: str, transitions: int) -> Object:
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": acquired,
            "renewTime": _now(),
            "leaseTransitions": transitions,
        }
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": spec,
        }


async def _to_its_end(job: Coroutine[Any, Any, None]) -> None:
    """Cancelled or not: kopf, when it stops, cancels every task that began after it, and so does who began this one."""
    task = asyncio.create_task(job)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
