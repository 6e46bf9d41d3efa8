from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
from kopf._core.engines.indexing import OperatorIndexers
from kopf._core.engines.probing import health_reporter

from rpcgroup_operator import liveness
from rpcgroup_operator.work_queue import WorkQueue
from tests.cluster.bed.process import free_port

HUNG_SECONDS = 0.2
Ask = Callable[[], Awaitable[tuple[int, Any]]]


def test_a_probe_of_an_operator_that_waits_for_its_turn() -> None:
    async def check(ask: Ask) -> None:
        assert await ask() == (200, {"reconcile": "waiting for the lease"})

    run([], check)


def test_a_probe_fails_while_reconciling_hangs_and_no_longer() -> None:
    async def check(ask: Ask) -> None:
        released = asyncio.Event()

        async def hang(key: tuple[str, str]) -> None:
            await released.wait()

        queue = WorkQueue(hang, workers=1)
        queues.append(queue)
        working = asyncio.create_task(queue.run())
        queue.add(("default", "g"))
        await asyncio.sleep(2 * HUNG_SECONDS)  # kopf asks once in ten seconds, so only then
        assert (await ask())[0] == 500
        released.set()
        while queue.busy:
            await asyncio.sleep(0)
        assert await ask() == (200, {"reconcile": "working"})
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    queues: list[WorkQueue] = []
    run(queues, check)


def run(queues: list[WorkQueue], check: Callable[[Ask], Awaitable[None]]) -> None:
    """`check` with kopf's page of an operator that works on `queues`; the page alone needs no API server."""

    async def serve() -> None:
        registry = kopf.OperatorRegistry()
        liveness.register(registry, queues, HUNG_SECONDS)
        url = f"http://localhost:{free_port()}/healthz"
        ready = asyncio.Event()
        page = asyncio.create_task(
            health_reporter(
                url,
                memo=kopf.Memo(),
                indices=OperatorIndexers().indices,
                registry=registry,
                settings=kopf.OperatorSettings(),
                ready_flag=ready,
            )
        )
        await asyncio.wait_for(ready.wait(), 10)
        try:
            await asyncio.wait_for(check(lambda: asyncio.to_thread(get, url)), 30)
        finally:
            page.cancel()
            await asyncio.gather(page, return_exceptions=True)

    asyncio.run(serve())


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as exc:
        return exc.code, None
