"""What a worker knows of its group, and the interface of the places where workers meet.

One interface, one conformance suite (`tests/worker/membership/test_rendezvous.py`), several implementations:
`memory` (one process), `etcd`, and `store`, for groups that meet over a store of `torch.distributed`: there are no
leases there, no stats, and no watch of values. `membership.url.open_rendezvous` opens the first two by their URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rpcgroup.membership.record import MemberRecord

__all__ = [
    "OPERATION_SECONDS",
    "DrainRequest",
    "GroupListener",
    "GroupView",
    "KeyValue",
    "RecordEvent",
    "RecordGone",
    "RecordPut",
    "Rendezvous",
]

OPERATION_SECONDS = 4.0
"""How long an operation without a timeout of its own tries before it says that the rendezvous is away."""


@dataclass(frozen=True)
class GroupView:
    """All member records at one moment.

    `epoch` is the revision of the last membership change; it only grows, whatever the rendezvous.
    """

    epoch: int
    members: Mapping[str, MemberRecord]


@dataclass(frozen=True)
class RecordPut:
    """A record appeared or changed."""

    record: MemberRecord


@dataclass(frozen=True)
class RecordGone:
    """A record disappeared: its last content.

    Gone in state LEAVING is a farewell, in EVICTED a death that somebody saw, in any other a suspicion.
    """

    record: MemberRecord


RecordEvent = RecordPut | RecordGone


@dataclass(frozen=True)
class DrainRequest:
    """Leave, by `deadline` (unix seconds), because of `reason`."""

    deadline: float
    reason: str


class GroupListener(Protocol):
    """Called by threads of the rendezvous, one call at a time and in order.

    Must not block, and so must not call the rendezvous back.

    The first `on_view` has every record as RecordPut. A record that goes and comes back (a lost lease) shows
    as RecordGone and RecordPut of the same incarnation; `membership.tracker` says what that means. My own
    record is there too: a RecordPut of my name with another token says that another worker took my place.
    """

    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None: ...

    def on_drain(self, request: DrainRequest) -> None: ...


class KeyValue(Protocol):
    """The group's small shared values. All raise `RendezvousUnavailableError` after OPERATION_SECONDS."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, value: bytes) -> None: ...

    def delete(self, key: str) -> bool:
        """True if there was one."""
        ...

    def watch(self, prefix: str, callback: Callable[[str, bytes | None], None]) -> Callable[[], None]:
        """Call back with (key, value or None for deleted), current values first; returns what stops it.

        One thread per watch calls back. It is state, not a log: after an outage values that came and went may
        be skipped, the last one never.
        """
        ...


class Rendezvous(Protocol):
    """One worker's seat at the place where its group meets. Thread-safe.

    A seat that never joins can look, ask others to leave, evict and use `kv`: that is how commands use it.
    Operations raise `RendezvousUnavailableError` after OPERATION_SECONDS where nothing else is said.
    """

    has_leases: bool
    """Whether a death shows here by itself. If not, it shows only to those that were connected."""

    def join(
        self,
        record: MemberRecord,
        *,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        listener: GroupListener,
        timeout: float,
    ) -> MemberRecord:
        """Enter the group; returns the record as stored, with its incarnation and id.

        `admit(mine, earlier)` runs in this thread against the records that were there first, ordered by
        incarnation, and raises `JoinError` to withdraw: the others then see a farewell whose `reason` is the
        error's text. The first `on_view` has returned when this returns. From then on the record is kept: a
        lost lease is replaced and the same incarnation put back, whatever the length of an outage.
        Raises `MemberExistsError`, `JoinError`, `RendezvousUnavailableError` within `timeout` seconds.
        """
        ...

    def update(self, **changes: object) -> MemberRecord:
        """Change fields of my own record (`state`, `labels`, `device_maps` ...).

        Where the rendezvous is away this raises, and the change is written once it is back.
        Raises `MemberExistsError` where another worker has taken my name meanwhile.
        """
        ...

    def leave(self, timeout: float) -> None:
        """Say farewell (state LEAVING), delete the record, end the lease; the listener hears no more.

        Idempotent; never raises for an outage.
        """
        ...

    def view(self) -> GroupView:
        """After `join` what the listener was last told, at no cost; before, read from the rendezvous."""
        ...

    def refresh(self) -> None:
        """Tell the listener what it could know by now: for a place that has to be looked at. Others tell at once."""
        ...

    def request_drain(self, name: str, request: DrainRequest) -> None:
        """Ask a member to leave; raises `UnknownWorkerError` where there is none of that name."""
        ...

    def evict(self, name: str) -> None:
        """Take a dead member out at once, without waiting for its lease; nothing where there is none.

        For whoever knows that its process is gone: peers count it as dead without trying to reach it. One that
        lives puts its record back, unless it is DRAINING: then its time to leave is over.
        """
        ...

    def suspect(self, member: MemberRecord) -> None:
        """Take away the record of a member that looks dead from here; nothing where another has its name.

        The others find out by themselves: for whoever reaches it, it stays a member, and if it lives it puts
        its record back at once.
        """
        ...

    def put_stats(self, stats: bytes) -> None:
        """Publish what `status` and `top` show of me; best effort, gone with my lease."""
        ...

    def stats(self) -> Mapping[str, bytes]: ...

    @property
    def kv(self) -> KeyValue: ...

    def close(self) -> None:
        """Stop all threads; without `leave` the record stays until the lease ends. Idempotent."""
        ...
