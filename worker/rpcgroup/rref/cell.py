"""Where a value lives on its owner, until and after it is set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rpcgroup.cuda.events import Events

__all__ = ["Cell", "Waiter"]

Waiter = Callable[[Any, BaseException | None], None]
"""Gets the value and None, or None and the error."""


class Cell:
    """Set once. Written under its context's lock; `done` is written last, so that readers need no lock."""

    __slots__ = ("creation_error", "done", "error", "events", "value", "waiters")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.events: Events | None = None
        """Of the value's tensors on devices."""
        self.error: BaseException | None = None
        self.creation_error: Exception | None = None
        """`remote` to oneself failed: the reference cannot be used or passed on."""
        self.waiters: list[Waiter] = []

    @classmethod
    def of(cls, value: Any, events: Events | None) -> Cell:
        cell = cls()
        cell.settle(value, None, events)
        return cell

    def settle(self, value: Any, error: BaseException | None, events: Events | None = None) -> list[Waiter]:
        """Those to be told now, with no lock held; none where it was settled before."""
        if self.done:
            return []
        self.value = value
        self.events = events
        self.error = error
        self.done = True
        waiters, self.waiters = self.waiters, []
        return waiters

    def type_name(self) -> str:
        """Of the value, for those it is passed on to; empty before it is there."""
        if not self.done or self.error is not None:
            return ""
        kind = type(self.value)
        return f"{kind.__module__}.{kind.__qualname__}"
