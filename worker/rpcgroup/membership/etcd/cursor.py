"""What a watch's responses mean: which events to tell, where to go on, when to read all anew. No I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from rpcgroup.membership.etcd.messages import Event, WatchResponse

__all__ = ["Verdict", "WatchCursor"]


class Verdict(enum.Enum):
    """What to do after a response."""

    FOLLOW = enum.auto()
    RELIST = enum.auto()
    """The events that follow are not to be had any more: read the state and tell the differences."""
    REOPEN = enum.auto()
    """The server ended this watch; `WatchCursor.cancel_reason` says why."""


@dataclass
class WatchCursor:
    """`next_revision` is the first one not told yet. Feed it one stream's responses in order."""

    next_revision: int
    term: int = 0
    cancel_reason: str = ""
    _parts: list[Event] = field(default_factory=list)

    def reopened(self) -> None:
        """A new stream begins: what came of an unfinished response comes again."""
        self._parts = []

    def feed(self, response: WatchResponse) -> tuple[Verdict, list[Event]]:
        """The verdict, and whole revisions of events to tell, each event once."""
        if response.created and self._is_younger_store(response):
            return Verdict.RELIST, []
        self.term = max(self.term, response.header.raft_term)
        if response.compact_revision:
            return Verdict.RELIST, []
        if response.canceled:
            self.cancel_reason = response.cancel_reason
            return Verdict.REOPEN, []
        self._parts += response.events
        if response.fragment:
            return Verdict.FOLLOW, []
        events = [event for event in self._parts if event.kv.mod_revision >= self.next_revision]
        self._parts = []
        if events:
            # Never from the header: in a catch-up it is over a thousand revisions ahead of the events.
            self.next_revision = events[-1].kv.mod_revision + 1
        elif not response.created and not response.events:
            self.next_revision = max(self.next_revision, response.header.revision + 1)
        return Verdict.FOLLOW, events

    def _is_younger_store(self, response: WatchResponse) -> bool:
        """etcd came back with another, emptier store, where our revisions are in the future."""
        header = response.header
        return header.revision < self.next_revision - 1 or 0 < header.raft_term < self.term
