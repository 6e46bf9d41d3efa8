from __future__ import annotations

from typing import Any

import pytest

from rpcgroup.local.traffic import Route, routes


def worker(name: str, **stats: Any) -> dict[str, Any]:
    return {"name": name, "stats": stats}


def test_the_senders_tell_the_routes() -> None:
    workers = [
        worker(
            "a",
            devices={
                "c": {"sent": {"host": 1}},
                "b": {"sent": {"ipc": 9, "host": 2}, "received": {"ipc": 5}},
            },
        ),
        worker("b", devices={"a": {"sent": {"ipc": 5}}}, calls=3),
        worker("c", calls=3),
    ]
    assert list(routes(workers)) == [
        Route("a", "b", "host", 2),
        Route("a", "b", "ipc", 9),
        Route("a", "c", "host", 1),
        Route("b", "a", "ipc", 5),
    ]


@pytest.mark.parametrize(
    "odd", [None, 3, "b", [], {"b": 1}, {"b": {"sent": 1}}, {"b": {"sent": {"host": "many"}}}, {"b": {}}]
)
def test_what_other_versions_write_is_nothing(odd: Any) -> None:
    assert list(routes([worker("a", devices=odd)])) == []
