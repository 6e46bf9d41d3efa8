"""A group of fixed size over a c10d store: all come, one judges the records of all, and all hear one verdict.

Each member puts its record at the key of its rank. Who then finds the records of all there (the last, at least)
judges them and claims the verdict's key; so does who has waited too long, and who cannot start. The first
verdict counts for everybody: the group stands for all, or fails for all with the same reason. It costs each
member a handful of operations, whatever the size of the group.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rpcgroup.errors import JoinError, RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.record import MemberRecord, new_token
from rpcgroup.membership.rendezvous import DrainRequest, GroupListener, GroupView, RecordGone, RecordPut
from rpcgroup.membership.store.client import StoreClient
from rpcgroup.membership.store.key_value import StoreKeyValue

__all__ = ["StaticRendezvous"]

VERDICT: Final = "verdict"
READERS: Final = "readers"
"""How many have read the verdict."""
LINGER_PAUSE: Final = 0.005
LINGER_SECONDS: Final = 5.0
"""For the others to read the verdict, at the member whose process serves the store to them. They may be late."""


@dataclass(frozen=True)
class _Verdict:
    """Either the members by rank, or why there is no group. `missing` is how many will not read it."""

    members: tuple[MemberRecord, ...] = ()
    failure: str = ""
    missing: int = 0

    def to_text(self) -> str:
        members = [member.to_json().decode() for member in self.members]
        return json.dumps({"members": members, "failure": self.failure, "missing": self.missing})

    @classmethod
    def from_text(cls, text: str) -> _Verdict:
        raw = json.loads(text)
        members = tuple(MemberRecord.from_json(m.encode(), 0) for m in raw["members"])
        return cls(members, raw["failure"], raw["missing"])


class StaticRendezvous:
    """The `Rendezvous` interface, of which this stays: join, leave, suspect, view, kv. Nobody joins later.

    A death shows to each member by itself, when its connection to the dead one breaks.
    """

    has_leases = False

    def __init__(self, client: StoreClient, world_size: int, place: str = "") -> None:
        """`place` is what users know the store by: who waits in vain may wait at another one than the rest."""
        self._client = client
        self._place = place
        self._world_size = world_size
        self._kv = StoreKeyValue(client)
        self._rank = -1
        self._readers = 0
        """How many read the verdict, before or after me."""
        self._listener: GroupListener | None = None
        self._lock = threading.Lock()  # guards _view, and that the listener is called once at a time
        self._view = GroupView(0, {})
        self._closed = False

    def join(
        self,
        record: MemberRecord,
        *,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        listener: GroupListener,
        timeout: float,
    ) -> MemberRecord:
        """Returns when the group is complete and found to be in order.

        `admit(last, others)` runs once, at one member, when all have come: with the highest rank and the rest.
        """
        if self._listener:
            raise JoinError(f"this seat has joined already, as rank {self._rank}")
        self._rank = record.id
        mine = replace(record, token=record.token or new_token(), incarnation=record.id + 1)
        verdict = self._come(mine, admit, timeout)
        self._heard(verdict)
        if verdict.failure:
            where = f". This worker waited at {self._place}" if verdict.missing and self._place else ""
            raise JoinError(verdict.failure + where)
        members = {m.name: m for m in verdict.members}
        if members.get(mine.name) != mine:
            raise JoinError(f"the group is complete without {mine.name!r}, which would be rank {mine.id}")
        with self._lock:
            self._listener, self._view = listener, GroupView(1, members)
            listener.on_view(self._view, [RecordPut(m) for m in verdict.members])
        return mine

    def give_up(self, name: str, rank: int, reason: str) -> None:
        """This member cannot start: the others need not wait for it. Never raises."""
        self._rank = rank
        try:
            self._heard(self._decide(_Verdict(failure=f"{name} (rank {rank}) could not start: {reason}")))
        except RendezvousUnavailableError:
            pass  # they will learn it from their own timeout

    def update(self, **changes: object) -> MemberRecord:
        raise RendezvousError("the records of a static group do not change")

    def leave(self, timeout: float) -> None:
        """Those that are connected hear it from the agent."""
        with self._lock:
            self._listener = None

    def view(self) -> GroupView:
        return self._view

    def refresh(self) -> None:
        """There is no news of a static group."""

    def request_drain(self, name: str, request: DrainRequest) -> None:
        raise RendezvousError(f"{name!r} cannot be asked to leave: it is a member of a static group")

    def evict(self, name: str) -> None:
        raise RendezvousError(f"{name!r} cannot be taken out: it is a member of a static group")

    def suspect(self, member: MemberRecord) -> None:
        """It is gone, for this worker. In state LEAVING it has said goodbye."""
        with self._lock:
            if self._listener is None or member.name not in self._view.members:
                return
            members = {name: m for name, m in self._view.members.items() if name != member.name}
            self._view = GroupView(self._view.epoch + 1, members)
            self._listener.on_view(self._view, [RecordGone(member)])

    def put_stats(self, stats: bytes) -> None:
        """Nobody looks at the stats of a group that meets over a store."""

    def stats(self) -> Mapping[str, bytes]:
        return {}

    @property
    def kv(self) -> StoreKeyValue:
        return self._kv

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._listener = None
        if self._rank == 0:
            self._linger()

    # -- the verdict --------------------------------------------------------------------------------------

    def _come(
        self,
        mine: MemberRecord,
        admit: Callable[[MemberRecord, Sequence[MemberRecord]], None],
        timeout: float,
    ) -> _Verdict:
        deadline = time.monotonic() + timeout
        if not 0 <= mine.id < self._world_size:
            return self._decide(
                _Verdict(failure=f"{mine.name} has rank {mine.id} in a group of {self._world_size}")
            )
        text = mine.to_json().decode()
        other = self._client.claim(_member(mine.id), text)
        if other != text:
            name = MemberRecord.from_json(other.encode(), 0).name
            return self._decide(_Verdict(failure=f"rank {mine.id} is taken twice: by {name} and {mine.name}"))
        if self._client.has_all([_member(rank) for rank in range(self._world_size)]):
            return self._decide(self._judge(admit, timeout))
        heard = self._client.wait(VERDICT, deadline, self._world_size)
        return _Verdict.from_text(heard) if heard else self._decide(self._judge(admit, timeout))

    def _decide(self, verdict: _Verdict) -> _Verdict:
        """The first one counts."""
        return _Verdict.from_text(self._client.claim(VERDICT, verdict.to_text()))

    def _judge(
        self, admit: Callable[[MemberRecord, Sequence[MemberRecord]], None], timeout: float
    ) -> _Verdict:
        texts = {rank: self._client.read(_member(rank)) for rank in range(self._world_size)}
        members = [MemberRecord.from_json(text.encode(), 0) for text in texts.values() if text is not None]
        missing = [rank for rank, text in texts.items() if text is None]
        if missing:
            failure = _missing(missing, self._world_size, members, timeout)
            return _Verdict(failure=failure, missing=len(missing))
        ranks: dict[str, list[int]] = defaultdict(list)
        for member in members:
            ranks[member.name].append(member.id)
        for name, taken in ranks.items():
            if len(taken) > 1:
                return _Verdict(failure=f"the name {name!r} is not unique: ranks {taken} have it")
        try:
            admit(members[-1], members[:-1])
        except JoinError as exc:
            return _Verdict(failure=str(exc))
        return _Verdict(tuple(members))

    def _heard(self, verdict: _Verdict) -> None:
        self._readers = self._world_size - verdict.missing
        self._client.count(READERS, 1)

    def _linger(self) -> None:
        """The process of rank 0 serves a TCPStore: it must not end before the others have read the verdict."""
        deadline = time.monotonic() + LINGER_SECONDS
        try:
            while self._client.count(READERS) < self._readers and time.monotonic() < deadline:
                time.sleep(LINGER_PAUSE)
        except RendezvousUnavailableError:
            pass


def _member(rank: int) -> str:
    return f"member/{rank}"


def _missing(missing: Sequence[int], size: int, members: Sequence[MemberRecord], timeout: float) -> str:
    there = ", ".join(f"{m.name} (rank {m.id})" for m in members[:10]) + (
        ", ..." if len(members) > 10 else ""
    )
    ranks = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return f"{len(missing)} of {size} members did not come within {timeout:g} s: ranks {ranks}; there are: {there}"
