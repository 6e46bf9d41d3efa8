"""The driver's eyes on etcd: who is in the group and what the workers say of themselves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.rendezvous import GroupView, Rendezvous

__all__ = ["Observer", "Sighting"]

INTERVAL: Final = 0.25
"""Seconds between two looks: two small reads of a local etcd, which cost it about a millisecond."""


@dataclass(frozen=True)
class Sighting:
    """What was seen last. `away_since`: the unix time since when there is no answer, None while there is.

    `at` is when the look began: a record of a process that ended before is in it, if there is one at all.
    """

    view: GroupView = field(default_factory=lambda: GroupView(0, {}))
    stats: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    away_since: float | None = None
    at: float = field(default=0.0, compare=False)

    @property
    def members(self) -> Mapping[str, MemberRecord]:
        return self.view.members


class Observer:
    """Looks again and again in a thread of its own, so that an etcd that hangs does not stop the driver.

    `on_change` is called from that thread after each look that saw something new.
    """

    def __init__(self, rendezvous: Rendezvous, on_change: Callable[[], None]) -> None:
        self._rendezvous = rendezvous
        self._on_change = on_change
        self._last = Sighting()  # replaced as a whole by the thread, read by anyone
        self._look_now = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rpcgroup-observer", daemon=True)
        self._thread.start()  # joined in close()

    @property
    def last(self) -> Sighting:
        return self._last

    def look(self) -> None:
        """Soon, not only at the next interval."""
        self._look_now.set()

    def close(self) -> None:
        self._closed = True
        self._look_now.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            before = self._last
            self._last = now = self._see(before)
            if now != before:
                self._on_change()
            self._look_now.wait(INTERVAL)
            self._look_now.clear()

    def _see(self, before: Sighting) -> Sighting:
        at = time.time()
        try:
            view = later(self._rendezvous.view(), before.view)
            stats = {name: readable(text) for name, text in self._rendezvous.stats().items()}
        except RendezvousError:
            away_since = at if before.away_since is None else before.away_since
            return Sighting(before.view, before.stats, away_since, at)
        return Sighting(view, stats, None, at)


def later(view: GroupView, before: GroupView) -> GroupView:
    """Who only looks gets the epoch of the records there are; it must not fall when one goes."""
    if view.epoch >= before.epoch:
        return view
    return GroupView(before.epoch + (view.members != before.members), view.members)


def readable(stats: bytes) -> dict[str, Any]:
    """Workers of other versions may write anything; what is no JSON object is nothing."""
    try:
        value = json.loads(stats)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
