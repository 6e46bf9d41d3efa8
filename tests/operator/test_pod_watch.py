from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rpcgroup import contract
from rpcgroup_operator.api import ApiError
from rpcgroup_operator.pod_watch import PodWatch
from rpcgroup_operator.store import Store

PATIENCE = 30.0
KEY = ("ns", "g")
Raw = dict[str, Any]
Ending = Exception | None


def pod(name: str, version: int, namespace: str = "ns") -> Raw:
    labels = {contract.LABEL_GROUP: "g", contract.LABEL_ROLE: "worker", contract.LABEL_INDEX: "0"}
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"{name}-uid",
        "resourceVersion": str(version),
        "labels": labels,
    }
    return {"metadata": metadata}


def event(kind: str, raw: Raw) -> Raw:
    return {"type": kind, "object": raw}


class Api:
    """Lists and watches in the order in which they are asked for. A watch without an ending stays open."""

    def __init__(self, lists: list[tuple[int, list[Raw]]], watches: list[tuple[list[Raw], Any]]) -> None:
        self.lists, self.watches = lists, watches
        self.watched_from: list[str] = []
        self.open = asyncio.Event()

    async def get(self, path: str) -> Raw:
        asked = parse_qs(urlsplit(path).query)
        version, pods = self.lists[0]
        first = int(asked.get("continue", ["0"])[0])
        page, rest = pods[first : first + 2], pods[first + 2 :]
        metadata = {"resourceVersion": str(version), "continue": str(first + 2) if rest else ""}
        if not rest:
            self.lists.pop(0)
        return {"metadata": metadata, "items": page}

    async def watch(self, path: str) -> AsyncIterator[Raw]:
        self.watched_from.append(parse_qs(urlsplit(path).query)["resourceVersion"][0])
        if not self.watches:
            self.open.set()
            await asyncio.Event().wait()
        events, ending = self.watches.pop(0)
        for one in events:
            yield one
        if ending is not None:
            raise ending


def watched(
    lists: list[tuple[int, list[Raw]]],
    watches: list[tuple[list[Raw], Ending]],
    before: Callable[[Store], object] = lambda store: None,
    namespace: str = "",
) -> tuple[Store, Api, list[tuple[str, str]]]:
    """What is in the store when the last watch has been opened."""
    changes: list[tuple[str, str]] = []

    async def drive() -> tuple[Store, Api]:
        store, api = Store(), Api(lists, watches)
        before(store)
        watch = PodWatch(api, store, changes.append, namespace)  # type: ignore[arg-type]
        running = asyncio.create_task(watch.run())
        await api.open.wait()
        assert watch.listed.is_set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return store, api

    return *asyncio.run(asyncio.wait_for(drive(), PATIENCE)), changes


def test_a_list_of_several_pages_and_what_comes_after_it() -> None:
    listed = [pod(f"p{n}", n) for n in range(5)]
    events = [
        event("ADDED", pod("late", 11)),
        event("DELETED", pod("p0", 12)),
        event("BOOKMARK", {"metadata": {"resourceVersion": "20"}}),
    ]
    store, api, changes = watched([(10, listed)], [(events, None)])
    assert sorted(store.pods(KEY)) == ["late", "p1", "p2", "p3", "p4"]
    assert api.watched_from == ["10", "20"]
    assert len(changes) == 7


def test_a_broken_watch_goes_on_where_it_was() -> None:
    first = [event("ADDED", pod("a", 11))], ConnectionError("reset")
    second = [event("ADDED", pod("b", 12))], TimeoutError()
    store, api, _ = watched([(10, [])], [first, second])
    assert sorted(store.pods(KEY)) == ["a", "b"]
    assert api.watched_from == ["10", "11", "12"]


def test_a_watch_that_has_lost_its_place_lists_again_and_what_is_gone_goes() -> None:
    lost = event("ERROR", {"code": 410, "reason": "Expired", "message": "too old"})
    second = (30, [pod("kept", 5)])
    store, api, changes = watched([(10, [pod("kept", 5), pod("gone", 6)]), second], [([lost], None)])
    assert list(store.pods(KEY)) == ["kept"]
    assert api.watched_from == ["10", "30"]
    assert changes == [KEY, KEY, KEY]


def test_a_refused_list_is_asked_for_again() -> None:
    refused = [([], ApiError(403, "Forbidden", "pods is forbidden"))]
    _, api, _ = watched([(10, []), (20, [])], refused)  # type: ignore[arg-type]
    assert api.watched_from == ["10", "20"]


def test_a_pod_made_after_the_list_was_written_stays() -> None:
    def made_meanwhile(store: Store) -> None:
        store.put_raw_pod(pod("young", 15))
        store.put_raw_pod(pod("old", 5))

    store, _, _ = watched([(10, [])], [], made_meanwhile)
    assert list(store.pods(KEY)) == ["young"]


def test_pods_of_other_namespaces_are_another_watchs() -> None:
    def elsewhere(store: Store) -> None:
        store.put_raw_pod(pod("p", 5, namespace="other"))

    store, _, _ = watched([(10, [])], [], elsewhere, namespace="ns")
    assert list(store.pods(("other", "g"))) == ["p"]
