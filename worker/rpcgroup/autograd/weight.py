"""How the caller of a backward pass learns that all of it has been done: by weights.

The pass weighs one. What is sent on gets a part of the weight of what caused it, and a worker where nothing is left
to send gives its part back to the caller, at once. When all of it is back, nothing is under way: no message tells
of a single step, and none waits for another. (Huang's algorithm for the detection of termination.)

A weight e stands for 2**-e, which can be halved without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["WHOLE", "Total", "share"]

WHOLE: Final = 0


def share(weights: Sequence[int], parts: int) -> tuple[list[int], list[int]]:
    """A weight for each of the parts, and those that are left over; all together they are the given ones."""
    shares = sorted(weights)
    if not parts:
        return [], shares
    while len(shares) < parts:
        half = shares.pop(0) + 1
        shares += [half, half]
    return shares[:parts], shares[parts:]


class Total:
    """A sum of weights. Not thread-safe."""

    def __init__(self) -> None:
        self._units = 0
        """Of 2**-_depth."""
        self._depth = 0

    def add(self, weight: int) -> None:
        if weight > self._depth:
            self._units <<= weight - self._depth
            self._depth = weight
        self._units += 1 << (self._depth - weight)

    @property
    def is_whole(self) -> bool:
        return self._units == 1 << self._depth
