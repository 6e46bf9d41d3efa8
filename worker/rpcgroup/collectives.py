"""Gathering an object from each of several members, over calls: the one with the smallest name leads.

The others' contribution is a call to the leader, and what all have contributed is its answer. So the death of the
leader ends the call, and a gathering leaves nothing behind anywhere.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rpcgroup.agent.agent import Agent
from rpcgroup.errors import DrainedError, GroupError, PeerUnreachableError, UnknownWorkerError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future, collect_all

__all__ = ["Collectives"]

FIRST_LOOK: Final = 0.2
"""Seconds after which a leader sees to it that it would notice the death of whoever has not come yet."""
LOOK_INTERVAL: Final = 1.0
REMEMBERED: Final = 64
"""Gatherings that ended without somebody."""
GRACE: Final = 1.0
"""Seconds that a member gives the leader to say, past their timeout, who has not come."""


class _Id(NamedTuple):
    """One gathering, the same at all its members: the n-th of these names; without leaders that have failed."""

    names: tuple[str, ...]
    number: int
    given_up: tuple[str, ...]

    @property
    def expected(self) -> list[str]:
        return [name for name in self.names if name not in self.given_up]


class _Outcome(NamedTuple):
    objects: dict[str, Any]
    lost: list[str]
    """Who did not come, and is no member any more, or cannot be reached."""
    late: list[str]
    """Who did not come within the time."""


@dataclass
class _Gathering:
    id: _Id
    deadline: float
    outcome: Future[_Outcome]
    given: dict[str, Future[Any]] = field(default_factory=dict)
    """Settled: what each has given, with where its tensors are in order."""

    @property
    def missing(self) -> list[str]:
        return [name for name in self.id.expected if name not in self.given]

    def end(self, lost: list[str], late: list[str]) -> None:
        def tell(_: Any) -> None:
            objects = {name: given.value() for name, given in self.given.items()}
            self.outcome.set_result(_Outcome(objects, lost, late))

        collect_all(list(self.given.values())).add_done_callback(tell)


class Collectives:
    """One member's part in gatherings. Every member calls the same ones in the same order. Thread-safe."""

    def __init__(self, agent: Agent, is_here: Callable[[str], bool]) -> None:
        """`is_here` tells whether a member of that name can be expected to come."""
        self._agent = agent
        self._is_here = is_here
        self._lock = threading.Lock()  # guards the rest
        self._begun: Counter[tuple[str, ...]] = Counter()
        self._gatherings: dict[_Id, _Gathering] = {}
        """Those led from here that are not complete."""
        self._ended_without: dict[_Id, _Outcome] = {}
        """Of those that ended without somebody who may still come: what to tell it."""

    def start(self) -> None:
        """Before the agent serves: others may be faster."""
        with _leaders_lock:
            _leaders[self._key] = self

    def close(self) -> None:
        with _leaders_lock:
            _leaders.pop(self._key, None)
        with self._lock:
            gatherings, self._gatherings = list(self._gatherings.values()), {}
        for gathering in gatherings:
            gathering.outcome.set_exception(DrainedError(f"{self._agent.name} has left the group"))

    def all_gather(self, obj: Any, names: Iterable[str], timeout: float = 0.0) -> dict[str, Any]:
        """What each of these members, me among them, has given here: by name. Blocks until all have come.

        `timeout` in seconds, 0 = none. Raises `GroupError` that names who has not come, and
        `PeerUnreachableError` where that is the leader.
        """
        id = self._begin(names)
        outcome = self._gather(id, obj, timeout)
        absent = sorted(outcome.lost + outcome.late)
        if absent:
            raise GroupError(_absence(absent, id, timeout))
        return outcome.objects

    def meet(self, obj: Any, names: Iterable[str], timeout: float = 0.0) -> dict[str, Any]:
        """As `all_gather`, of those who live: whoever has left or died, before or meanwhile, is not waited for."""
        id = self._begin(names)
        deadline = time.monotonic() + timeout if timeout else 0.0
        while True:
            left = max(deadline - time.monotonic(), 0.001) if deadline else 0.0
            try:
                outcome = self._gather(id, obj, left)
            except (PeerUnreachableError, UnknownWorkerError, DrainedError):
                id = id._replace(given_up=(*id.given_up, id.expected[0]))
                continue
            if outcome.late:
                raise GroupError(_absence(outcome.late, id, timeout))
            return outcome.objects

    @property
    def guests(self) -> int:
        """Calls of others that are answered when a gathering is complete."""
        with self._lock:
            return sum(len(g.given.keys() - {self._agent.name}) for g in self._gatherings.values())

    def members_changed(self) -> None:
        """Somebody may not come any more. Does not block: the answers to those who wait are another thread's."""
        with self._lock:
            if not self._gatherings:
                return
        self._agent.chores.submit(self._settle_complete)

    def is_lost(self, name: str) -> bool:
        """Whether nobody of that name can be expected to come. Blocks where it has to connect to find out."""
        self._reach(name)
        return not self._is_here(name)

    # -- a member -----------------------------------------------------------------------------------------

    def _begin(self, names: Iterable[str]) -> _Id:
        ordered = tuple(sorted(set(names)))
        if self._agent.name not in ordered:
            raise ValueError(f"{self._agent.name} gathers with {ordered} and is not among them")
        with self._lock:
            self._begun[ordered] += 1
            return _Id(ordered, self._begun[ordered], ())

    def _gather(self, id: _Id, obj: Any, timeout: float) -> _Outcome:
        agent, leader = self._agent, id.expected[0]
        if leader == agent.name:
            return self.contribute(id, leader, obj, timeout).wait()
        args = (agent.identity.group, leader, tuple(id), agent.name, obj, timeout)
        answer = agent.rpc_sync(leader, _contribute, args, None, timeout + GRACE if timeout else 0.0)
        return _Outcome(*answer)

    # -- the leader ---------------------------------------------------------------------------------------

    def contribute(self, id: _Id, name: str, obj: Any, timeout: float) -> Future[_Outcome]:
        """Of one member, to a gathering led from here; the first to come is the one that begins it."""
        deadline = time.monotonic() + timeout if timeout else 0.0
        given = self._new_future()
        given.set_result(obj)
        with self._lock:
            if id in self._ended_without:
                missed: Future[_Outcome] = Future()
                missed.set_result(self._ended_without[id])
                return missed
            gathering = self._gatherings.get(id)
            if gathering is None:
                gathering = self._gatherings[id] = _Gathering(id, deadline, self._new_future())
                self._agent.monitor.call_later(FIRST_LOOK, lambda: self._look_after(id))
            if deadline and (not gathering.deadline or deadline < gathering.deadline):
                gathering.deadline = deadline
            gathering.given[name] = given
            new_deadline = gathering.deadline == deadline
        if new_deadline and timeout:
            self._agent.monitor.call_later(timeout, self._settle_complete)
        self._settle_complete()
        return gathering.outcome

    def _settle_complete(self) -> None:
        """End the gatherings for which nobody is waited any more."""
        now = time.monotonic()
        ended: list[tuple[_Gathering, list[str], list[str]]] = []
        with self._lock:
            for gathering in list(self._gatherings.values()):
                missing = gathering.missing
                late = [name for name in missing if self._is_here(name)]
                if not late or (gathering.deadline and gathering.deadline <= now):
                    lost = [name for name in missing if name not in late]
                    del self._gatherings[gathering.id]
                    if missing:
                        self._remember(gathering.id, _Outcome({}, lost, late))
                    ended.append((gathering, lost, late))
        for gathering, lost, late in ended:
            gathering.end(lost, late)

    def _new_future(self) -> Future[Any]:
        on_devices = self._agent.on_devices
        return Future(devices=on_devices.devices) if on_devices is not None else Future()

    def _remember(self, id: _Id, outcome: _Outcome) -> None:
        self._ended_without[id] = outcome
        while len(self._ended_without) > REMEMBERED:
            del self._ended_without[next(iter(self._ended_without))]

    def _look_after(self, id: _Id) -> None:
        """Reach who has not come: of a connection's end one hears, of a death without one one does not."""
        with self._lock:
            gathering = self._gatherings.get(id)
        if gathering is None or self._agent.closing:
            return
        for name in gathering.missing:
            self._reach(name)
        self._settle_complete()
        self._agent.monitor.call_later(LOOK_INTERVAL, lambda: self._look_after(id))

    def _reach(self, name: str) -> None:
        try:
            incarnation = self._agent.peer(name).incarnation
        except (UnknownWorkerError, PeerUnreachableError, DrainedError):
            return
        if name != self._agent.name:
            self._agent.probe(incarnation)

    @property
    def _key(self) -> tuple[str, str]:
        return self._agent.identity.group, self._agent.name


_leaders_lock = threading.Lock()  # guards _leaders
_leaders: dict[tuple[str, str], Collectives] = {}
"""Of this process's members, by group and name."""


@async_execution
def _contribute(
    group: str, leader: str, id: tuple[Any, ...], name: str, obj: Any, timeout: float
) -> Future[tuple[Any, ...]]:
    """Called by the others on the leader."""
    with _leaders_lock:
        collectives = _leaders.get((group, leader))
    if collectives is None:
        raise DrainedError(f"{leader} has left the group")
    names, number, given_up = id
    outcome = collectives.contribute(_Id(tuple(names), number, tuple(given_up)), name, obj, timeout)
    return outcome.then(lambda done: tuple(done.wait()))


def _absence(absent: list[str], id: _Id, timeout: float) -> str:
    within = f" within {round(timeout, 1):g} s" if timeout else ""
    return f"{len(absent)} of {len(id.names)} members did not come{within}: {', '.join(absent[:20])}" + (
        ", ..." if len(absent) > 20 else ""
    )
