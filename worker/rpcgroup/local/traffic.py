"""What the workers of a snapshot say of their tensors on devices: who sends to whom, on which path, how many bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["Route", "routes"]


class Route(NamedTuple):
    """As its sender tells it."""

    sender: str
    receiver: str
    path: str
    size: int
    """Bytes."""


def routes(workers: Iterable[dict[str, Any]]) -> Iterator[Route]:
    """Workers of other versions may write anything; what is not of this shape is nothing."""
    for worker in workers:
        for receiver, directions in _entries(worker["stats"].get("devices")):
            sent = directions.get("sent") if isinstance(directions, dict) else None
            for path, size in _entries(sent):
                if isinstance(size, int):
                    yield Route(worker["name"], receiver, path, size)


def _entries(value: object) -> list[tuple[str, Any]]:
    return sorted(value.items()) if isinstance(value, dict) else []
