from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from rpcgroup import contract
from rpcgroup_operator.reporter import ALL_SECONDS, GROUP_SECONDS, Reporter
from rpcgroup_operator.store import Store

NOW = 1_000_000.0


class Api:
    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.version = 100

    async def merge(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path.endswith("/status")
        self.written.append(body["status"])
        self.version += 1
        return raw(path.split("/")[-2], self.version, body["status"])


def raw(name: str, version: int, status: dict[str, Any] | None = None) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "ns",
        "uid": name,
        "resourceVersion": str(version),
        "generation": 1,
    }
    whole = {"apiVersion": contract.API_VERSION, "kind": contract.KIND, "metadata": metadata, "spec": {}}
    return {**whole, "status": status} if status else whole


def status(replicas: int, available: bool = False) -> dict[str, Any]:
    condition = {"type": "Available", "status": str(available), "reason": "R", "message": f"{replicas}"}
    return {"replicas": replicas, "conditions": [condition]}


class Bench:
    def __init__(self, *names: str) -> None:
        self.api, self.store = Api(), Store()
        for name in names:
            self.store.put_group(raw(name, 1))
        self.reporter = Reporter(self.api, self.store)  # type: ignore[arg-type]

    def report(self, name: str, status: dict[str, Any], now: float) -> float | None:
        return asyncio.run(self.reporter.report(self.store.groups["ns", name], status, now))


def test_what_is_no_news_is_not_written() -> None:
    bench = Bench("g")
    assert bench.report("g", status(1), NOW) is None
    assert bench.report("g", status(1), NOW + 10) is None
    assert bench.api.written == [status(1)]


def test_numbers_wait_and_conditions_do_not() -> None:
    bench = Bench("g")
    bench.report("g", status(1), NOW)
    wait = bench.report("g", status(2), NOW + 0.1)
    assert wait is not None and abs(wait - (GROUP_SECONDS - 0.1)) < 1e-6
    assert bench.report("g", status(3, available=True), NOW + 0.2) is None
    assert [s["replicas"] for s in bench.api.written] == [1, 3]


def test_what_was_kept_back_is_written_when_its_time_has_come() -> None:
    bench = Bench("g")
    bench.report("g", status(1), NOW)
    wait = bench.report("g", status(2), NOW + 0.1)
    assert wait is not None
    assert bench.report("g", status(4), NOW + 0.1 + wait) is None
    assert [s["replicas"] for s in bench.api.written] == [1, 4]


def test_a_time_that_was_kept_and_not_used_is_gone() -> None:
    bench = Bench("g")
    bench.report("g", status(1), NOW)
    assert bench.report("g", status(2), NOW + 0.1) is not None
    assert bench.report("g", status(1), NOW + 0.2) is None, "it is as it was written"
    bench.report("g", status(1, available=True), NOW + 5)
    assert bench.report("g", status(2, available=True), NOW + 5.1) is not None


def test_many_groups_keep_a_common_pace_and_each_its_place() -> None:
    names = [f"g{n}" for n in range(50)]
    bench = Bench(*names)
    for name in names:
        bench.report(name, status(1), NOW)
    waits = [bench.report(name, status(2), NOW + 10) for name in names]
    assert waits[0] is None
    rest = [w for w in waits if w is not None]
    assert len(rest) == 49
    assert all(abs(b - a - ALL_SECONDS) < 1e-6 for a, b in pairwise(rest))
    again = bench.report(names[-1], status(3), NOW + 11)
    assert again is not None and abs(again - (rest[-1] - 1)) < 1e-6
    assert bench.report(names[-1], status(3), NOW + 10 + rest[-1]) is None


def test_a_group_that_is_gone_is_forgotten() -> None:
    bench = Bench("g")
    bench.report("g", status(1), NOW)
    bench.reporter.forget(("ns", "g"))
    assert bench.report("g", status(2), NOW) is None
