"""Whom an agent can call, by all that they are called, and what became of those who have gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rpcgroup.errors import DrainedError, PeerUnreachableError, RpcGroupError, UnknownWorkerError
from rpcgroup.membership.record import MemberRecord
from rpcgroup.worker_info import WorkerInfo

if TYPE_CHECKING:
    from rpcgroup.agent.peer import Peer

__all__ = ["Members", "Target", "targets"]

Target = str | int | WorkerInfo | MemberRecord

DEPARTED_KEPT: Final = 1024
"""Names of former members for whom a call is told what became of them."""
NAMED: Final = 10
"""Members that an error about an unknown one names."""


def targets(record: MemberRecord) -> tuple[str | int, ...]:
    """By what users call a member."""
    return record.name, record.called, record.id


class Members:
    """No lock: each look-up and each change of a table is one step of the interpreter."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._peers: dict[Any, Peer] = {}
        """By name, by id, and by incarnation as `("incarnation", n)`."""
        self._departed: dict[Any, tuple[bool, str, float]] = {}
        """By names and ids that are nobody's any more: whether it left in order, what happened, when (monotonic)."""
        self.newest_incarnation = 0
        """Of all members ever seen: an older one that is not a member has left or died."""

    def get(self, to: Target) -> Peer | None:
        return self._peers.get(_key(to))

    def of_incarnation(self, incarnation: int) -> Peer | None:
        return self._peers.get(("incarnation", incarnation))

    def all(self) -> list[Peer]:
        return [peer for key, peer in list(self._peers.items()) if key == peer.name]

    def add(self, peer: Peer) -> None:
        """Of one name, the latest counts."""
        record = peer.record
        self.newest_incarnation = max(self.newest_incarnation, record.incarnation)
        for target in targets(record):
            self._departed.pop(target, None)
            self._peers[target] = peer
        self._peers["incarnation", record.incarnation] = peer

    def remove(self, record: MemberRecord, why: str, in_order: bool) -> Peer | None:
        """That incarnation, if it is known; its name may be another's already."""
        peer = self._peers.pop(("incarnation", record.incarnation), None)
        if peer is None:
            return None
        if self._peers.get(record.name) is peer:
            for key in targets(record):
                self._departed[key] = in_order, f"{record.name} {why}", time.monotonic()
            while len(self._departed) > DEPARTED_KEPT:
                del self._departed[next(iter(self._departed))]
        for key in targets(record):
            if self._peers.get(key) is peer:
                del self._peers[key]
        return peer

    def clear(self) -> None:
        self._peers.clear()

    def missing(self, to: Target) -> RpcGroupError:
        """Why `to` cannot be called: what became of it, or that there is none of that name, and who is there."""
        departed = self._departed.get(_key(to))
        if departed is not None:
            in_order, what, when = departed
            error = DrainedError if in_order else PeerUnreachableError
            return error(f"{what}, {time.monotonic() - when:.1f} s ago, and is no member now")
        names = sorted(peer.name for peer in self.all())
        known = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        return UnknownWorkerError(f"no worker {to!r} in group {self._group}; there are: {known or 'none'}")


def _key(to: Target) -> str | int:
    return to.name if isinstance(to, WorkerInfo | MemberRecord) else to
