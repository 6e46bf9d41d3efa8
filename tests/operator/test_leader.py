from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.leader import Election

PATIENCE = 30.0


class OneLease(KubeApi):
    """An API server with room for one object. `turns` of the event loop pass before each answer."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.version = 0
        self.turns = 0

    async def get(self, path: str) -> Object:
        await self._wait()
        if self.lease is None:
            raise ApiError(404, "NotFound", "")
        return {**self.lease, "spec": dict(self.lease["spec"])}

    async def create(self, path: str, body: Object) -> Object:
        return await self.replace(path, body)

    async def replace(self, path: str, body: Object) -> Object:
        await self._wait()
        if body["metadata"].get("resourceVersion", "0") != str(self.version):
            raise ApiError(409, "Conflict", "")
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.lease

    @property
    def holder(self) -> Any:
        return self.lease and self.lease["spec"]["holderIdentity"]

    async def _wait(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)


def run(test: Callable[[OneLease], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(OneLease()), PATIENCE))


async def leads(api: OneLease, identity: str) -> asyncio.Task[None]:
    """A candidate, once it leads."""
    working = asyncio.Event()

    async def work() -> None:
        working.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Election(api, "ns", "lease", identity).lead(work))
    await working.wait()
    return task


def test_who_stops_gives_the_lease_back_and_the_next_one_need_not_wait() -> None:
    async def test(api: OneLease) -> None:
        first = await leads(api, "a")
        assert api.holder == "a"
        first.cancel()
        await asyncio.wait([first])
        assert (first.cancelled(), api.holder) == (True, "")
        second = await leads(api, "b")
        assert api.lease is not None
        assert (api.holder, api.lease["spec"]["leaseTransitions"]) == ("b", 1)
        second.cancel()
        await asyncio.wait([second])

    run(test)


@pytest.mark.parametrize("turns", range(5))
def test_the_lease_is_given_back_though_others_cancel_everything(turns: int) -> None:
    """As kopf does when it stops, and then the process once more: neither tells a lost lease."""

    async def test(api: OneLease) -> None:
        before = asyncio.all_tasks()
        first = await leads(api, "a")
        api.turns = 3
        for task in asyncio.all_tasks() - before - {first}:
            task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert (first.cancelled(), api.holder) == (True, "")

    run(test)


def test_work_that_fails_ends_the_lead() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def test(api: OneLease) -> None:
        with pytest.raises(ValueError, match="no"):
            await Election(api, "ns", "lease", "a").lead(fail)
        assert api.holder == ""

    run(test)


def test_a_lease_that_another_has_taken_ends_the_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcgroup_operator.leader.RENEW_SECONDS", 0.05)
    monkeypatch.setattr("rpcgroup_operator.leader.RETRY_SECONDS", 0.01)

    async def test(api: OneLease) -> None:
        first = await leads(api, "a")
        assert api.lease is not None
        api.lease["spec"]["holderIdentity"] = "b"
        await first
        assert api.holder == "b"

    run(test)
