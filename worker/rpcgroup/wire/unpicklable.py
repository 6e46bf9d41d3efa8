"""Where inside of what a call was given that is which cannot be pickled: for the error that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

__all__ = ["find_unpicklable"]

MAX_STEPS: Final = 16
"""Into objects within objects."""
MAX_PARTS: Final = 1000
"""Of one container that are tried."""


def find_unpicklable(values: tuple[Any, ...], pickle: Callable[[Any], None]) -> str:
    """The path to it for a message, " (at Config.callbacks['end'].lock, a lock)"; "" where there is no more to say.

    `pickle` raises for what cannot be pickled. It is tried on each part, so this is for errors only.
    """
    found: list[tuple[str, Any]] = []
    parts: Iterator[tuple[str, Any]] = ((type(value).__name__, value) for value in values)
    while len(found) <= MAX_STEPS and (culprit := _first(parts, pickle, [part for _, part in found])):
        found.append(culprit)
        parts = _parts(culprit[1])
    if len(found) < 2:
        return ""
    return f" (at {''.join(step for step, _ in found)}, a {type(found[-1][1]).__name__})"


def _first(
    parts: Iterator[tuple[str, Any]], pickle: Callable[[Any], None], within: list[Any]
) -> tuple[str, Any] | None:
    """The first that cannot be pickled on its own, and is not what it is part of."""
    for name, part in islice(parts, MAX_PARTS):
        if any(part is outer for outer in within):
            continue
        try:
            pickle(part)
        except Exception:
            return name, part
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """As one writes them behind the object."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{place}]", part) for place, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("{...}", part) for part in value)
    elif isinstance(attributes := getattr(value, "__dict__", None), dict):
        yield from ((f".{name}", part) for name, part in attributes.items())
