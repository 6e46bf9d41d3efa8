"""One operator works, the others watch: a Lease says who. kopf's own peering is no election (its docs say so)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from kubernetes.aio.client import ApiClient
from kubernetes.aio.leaderelection import electionconfig, leaderelection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

__all__ = ["lead"]

LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 10
RETRY_SECONDS: Final = 2

_log = logging.getLogger(__name__)


async def lead(
    client: ApiClient, name: str, namespace: str, identity: str, work: Callable[[], Awaitable[None]]
) -> None:
    """Wait for the lease, then run `work` for as long as it is kept; returns when it was lost.

    Who has lost it must end: an action of its own may still be on its way, and a fresh process has none.
    """

    async def begin() -> None:
        _log.info("leading as %s", identity)
        await work()

    async def end() -> None:
        _log.error("the lease %s/%s was lost", namespace, name)

    config = electionconfig.Config(
        LeaseLock(name, namespace, identity, client),
        lease_duration=LEASE_SECONDS,
        renew_deadline=RENEW_SECONDS,
        retry_period=RETRY_SECONDS,
        onstarted_leading=begin,
        onstopped_leading=end,
    )
    _log.info("waiting for the lease %s/%s", namespace, name)
    await leaderelection.LeaderElection(config).run()
    await asyncio.sleep(0)
