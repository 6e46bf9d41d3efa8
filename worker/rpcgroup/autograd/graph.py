"""The part of a graph that one worker has: what of it can be run, as one gradient after the other arrives.

Gradients enter by the roots, which are there from the start, and by the send functions, whose gradients arrive one
by one. A node can be run when every send function that reaches it has been heard of: then nothing is missing of
its gradient. Assuming that all of them will be heard of is what torch calls FAST mode.

Pure: a node is anything that can be hashed, and `next_of` tells where its outputs go.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["Edge", "LocalGraph", "Stage"]

Edge = tuple[Any, int]
"""A node, and which of its gradients."""


class Stage(NamedTuple):
    """What can be run now, in topological order."""

    early: list[Any]
    """From these an edge leads, on their way or directly, to a node that cannot be run yet."""
    rest: list[Any]
    terminals: list[Any]
    """Nodes without successors: the gradients end here."""


class LocalGraph:
    """Made for one pass. Not thread-safe."""

    def __init__(
        self,
        entries: Sequence[Sequence[Edge]],
        next_of: Callable[[Any], Sequence[tuple[Any, int]]],
    ) -> None:
        """`entries` are the edges of the roots, then those of each send function.

        `next_of(node)` gives its edges, `(None, 0)` for an output that leads nowhere; a terminal has none.
        """
        self.next: dict[Hashable, Sequence[tuple[Any, int]]] = {}
        order = self._walk([edge for entry in entries for edge in entry], next_of)
        self._order = order
        self._masks = self._reach(order, entries)
        self._blocked: dict[int, list[int]] = {}
        """Indices of the nodes that have not been taken, by the set of the entries that reach them."""
        for index, node in enumerate(order):
            self._blocked.setdefault(self._masks[node], []).append(index)
        self._missing = (1 << len(entries)) - 1
        """The entries that have not been heard of: a bit for each."""

    @property
    def finished(self) -> bool:
        """Every node has been taken."""
        return not self._blocked

    @property
    def terminals(self) -> list[Any]:
        """Nodes without successors."""
        return [node for node in self._order if not self.next[node]]

    @property
    def missing(self) -> list[int]:
        """The numbers of the entries that have not been heard of."""
        return [number for number in range(self._missing.bit_length()) if self._missing >> number & 1]

    def arrive(self, number: int) -> bool:
        """An entry has been heard of; false where it had been before."""
        bit = 1 << number
        if not self._missing & bit:
            return False
        self._missing &= ~bit
        return True

    def take(self) -> Stage:
        """What can be run and has not been taken yet."""
        ready = [mask for mask in self._blocked if not mask & self._missing]
        found = [self._blocked.pop(mask) for mask in ready]
        indices = found[0] if len(found) == 1 else sorted(index for some in found for index in some)
        inner: list[Any] = []
        terminals: list[Any] = []
        for index in indices:
            node = self._order[index]
            (inner if self.next[node] else terminals).append(node)
        early = self._early(inner) if self._blocked else ()
        if not early:
            return Stage([], inner, terminals)
        return Stage(
            [node for node in inner if node in early],
            [node for node in inner if node not in early],
            terminals,
        )

    def can_run(self, node: Any) -> bool:
        return not self._masks[node] & self._missing

    def _early(self, nodes: list[Any]) -> set[Any]:
        early: set[Any] = set()
        for node in reversed(nodes):
            for following, _ in self.next[node]:
                if following is not None and (following in early or not self.can_run(following)):
                    early.add(node)
                    break
        return early

    def _walk(self, starts: Iterable[Edge], next_of: Callable[[Any], Sequence[tuple[Any, int]]]) -> list[Any]:
        """All nodes, each before those it leads to. Not recursive: graphs are deep."""
        finished: list[Any] = []
        known = self.next
        for start, _ in starts:
            if start in known:
                continue
            known[start] = edges = next_of(start)
            path = [(start, iter(edges))]
            while path:
                node, rest = path[-1]
                for following, _ in rest:
                    if following is not None and following not in known:
                        known[following] = edges = next_of(following)
                        path.append((following, iter(edges)))
                        break
                else:
                    finished.append(node)
                    path.pop()
        finished.reverse()
        return finished

    def _reach(self, order: list[Any], entries: Sequence[Sequence[Edge]]) -> dict[Any, int]:
        masks = dict.fromkeys(order, 0)
        for number, edges in enumerate(entries):
            for node, _ in edges:
                masks[node] |= 1 << number
        for node in order:
            mask = masks[node]
            for following, _ in self.next[node]:
                if following is not None:
                    masks[following] |= mask
        return masks
