"""A c10d store as a meeting place uses it: `compare_set` and reads that never block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from rpcgroup.errors import RendezvousUnavailableError

__all__ = ["Store", "StoreClient"]

PAUSE: Final = 0.001
"""Seconds between the first two looks for a key; each further pause is half as long again."""
LONGEST_PAUSE: Final = 0.01
BUSY_WORLD: Final = 100
"""Members from which on the pauses grow with their number: one process may serve the store to all."""


class Store(Protocol):
    """What is used of `torch.distributed.Store`: `FileStore`, `TCPStore`, `HashStore` and `PrefixStore` have it.

    `get` blocks for a key that is not there, and `compare_set` of such a key sets it where `expected` is empty.
    """

    def get(self, key: str, /) -> bytes: ...

    def set(self, key: str, value: str, /) -> None: ...

    def check(self, keys: list[str], /) -> bool: ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...

    def add(self, key: str, amount: int, /) -> int: ...


class StoreClient:
    """Texts by key. All raise `RendezvousUnavailableError` where the store fails; once it has, it is not asked again:
    the process that served it has ended.

    It looks again and again where a store would wait: a wait of `TCPStore` keeps its one connection from all
    other threads, and one of `FileStore` counts whole seconds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failure = ""

    def claim(self, key: str, text: str) -> str:
        """Put `text` there unless something is; returns what is there."""
        with self._asked(key):
            return self._store.compare_set(key, "", text).decode()

    def replace(self, key: str, before: str, text: str) -> bool:
        """Put `text`, which nobody else puts, in the place of `before`; false where something else stands there."""
        with self._asked(key):
            return self._store.compare_set(key, before, text).decode() == text

    def put(self, key: str, text: str) -> None:
        with self._asked(key):
            self._store.set(key, text)

    def read(self, key: str) -> str | None:
        with self._asked(key):
            return self._store.get(key).decode() if self._store.check([key]) else None

    def has_all(self, keys: Sequence[str]) -> bool:
        with self._asked(keys[0]):
            return self._store.check(list(keys))

    def count(self, key: str, more: int = 0) -> int:
        """Add to a counter; returns its value."""
        with self._asked(key):
            return self._store.add(key, more)

    def wait(self, key: str, deadline: float, watchers: int = 1) -> str | None:
        """What is there as soon as something is; None at `deadline` (monotonic). `watchers`: how many wait so."""
        pause, longest = PAUSE, LONGEST_PAUSE * max(1.0, watchers / BUSY_WORLD)
        while (text := self.read(key)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, longest)
        return text

    @contextmanager
    def _asked(self, key: str) -> Iterator[None]:
        """c10d's errors are all RuntimeErrors."""
        if self._failure:
            raise self._unavailable(key)
        try:
            yield
        except RuntimeError as exc:
            self._failure = str(exc) or type(exc).__name__
            raise self._unavailable(key) from exc

    def _unavailable(self, key: str) -> RendezvousUnavailableError:
        return RendezvousUnavailableError(
            f"the store where the group meets does not answer (key {key!r}): {self._failure}"
        )
