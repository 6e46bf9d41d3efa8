from __future__ import annotations

import asyncio
from typing import Any

from rpcgroup import contract
from rpcgroup_operator.api import ApiError
from rpcgroup_operator.events import MESSAGE_LIMIT, Events
from rpcgroup_operator.store import Group

PATIENCE = 30.0


class Api:
    """Keeps what is created; the first request fails."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.refused = 0

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path.endswith("/namespaces/ns/events")
        if not self.refused:
            self.refused = 1
            raise ApiError(403, "Forbidden", "no")
        self.created.append(body)
        return body


def group(name: str) -> Group:
    metadata = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1"}
    return Group.of(
        {"apiVersion": contract.API_VERSION, "kind": contract.KIND, "metadata": metadata, "spec": {}}
    )


def written(count: int, *said: tuple[str, str, str]) -> list[dict[str, Any]]:
    api = Api()

    async def write() -> None:
        events = Events(api, "operator-0", pause=0.0)  # type: ignore[arg-type]
        writing = asyncio.create_task(events.run())
        events.normal(group("refused"), "First", "is not written, and in nobody's way")
        while not api.refused:
            await asyncio.sleep(0)
        for name, reason, note in said:
            events.warn(group(name), reason, note)
        while len(api.created) < count:
            await asyncio.sleep(0)
        writing.cancel()

    asyncio.run(asyncio.wait_for(write(), PATIENCE))
    return api.created


def test_an_event_says_of_what_it_is() -> None:
    (event,) = written(1, ("g", "FailedCreate", "pod g-worker-0: quota exceeded"))
    assert (event["type"], event["reason"]) == ("Warning", "FailedCreate")
    assert event["note"] == "pod g-worker-0: quota exceeded"
    assert event["regarding"]["name"] == "g"


def test_a_thousand_of_one_kind_are_one() -> None:
    said = [("g", "FailedCreate", f"pod g-worker-{n}") for n in range(1000)]
    other = ("h", "FailedCreate", "pod h-worker-0")
    first, second = written(2, *said, other)
    assert first["note"].startswith("pod g-worker-0; pod g-worker-1; ")
    assert first["note"].endswith("; and 990 more")
    assert second["note"] == "pod h-worker-0"


def test_what_is_said_twice_stands_once() -> None:
    (event,) = written(1, *[("g", "FailedCreate", "pod g-worker-0: quota")] * 3)
    assert event["note"] == "pod g-worker-0: quota"


def test_a_long_note_is_cut() -> None:
    (event,) = written(1, ("g", "FailedCreate", "x" * 5000))
    assert len(event["note"]) == MESSAGE_LIMIT
