"""What becomes of a backward pass, for the one that called it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rpcgroup.autograd.weight import Total

__all__ = ["Outcome"]


class Outcome:
    """Ends once: when all of the pass's weight is back, or with the first error. Thread-safe."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """`ended` is called at the end."""
        self.error: BaseException | None = None
        self._ended = ended
        self._lock = threading.Lock()  # guards _returned, _over, _heard
        self._returned = Total()
        self._over = False
        self._heard: set[int] = set()

    def is_repeated(self, report_id: int) -> bool:
        """A report that has come before: its worker did not hear that it had arrived."""
        with self._lock:
            known = report_id in self._heard
            self._heard.add(report_id)
        return known

    def give_back(self, weights: Sequence[int]) -> None:
        with self._lock:
            for weight in weights:
                self._returned.add(weight)
            if self._over or not self._returned.is_whole:
                return
            self._over = True
        self._ended()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            self.error = error
        self._ended()
