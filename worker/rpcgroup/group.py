"""A group as one of its members sees it: the agent, the seat at the rendezvous, and who else is there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch

from rpcgroup.admission import admit, admit_all
from rpcgroup.agent.agent import Agent
from rpcgroup.autograd import use_container
from rpcgroup.changes import Changes
from rpcgroup.collectives import Collectives
from rpcgroup.devices import DeviceMap, device_list, reverse_maps
from rpcgroup.errors import GroupError, NotInitializedError, RendezvousError
from rpcgroup.executor import GroupExecutor
from rpcgroup.finishing import finish_alone, finish_together
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, GroupView, KeyValue, RecordEvent, Rendezvous
from rpcgroup.membership.tracker import (
    Change,
    ChangeKind,
    MemberStatus,
    MemberTracker,
    Reachable,
    TrackerEvent,
    Unreachable,
)
from rpcgroup.rref.rref import use_context
from rpcgroup.stats import StatsPublisher

__all__ = ["Group"]

JOIN_TIMEOUT: Final = 30.0
"""Seconds for the rendezvous to answer."""
LEAVE_TIMEOUT: Final = 1.0
"""Seconds for the farewell: an etcd that is away must not keep a worker from ending."""
ONLY_FAREWELL_TIMEOUT: Final = 10.0
"""The same where nothing but the farewell ends a record: the others would take this worker for dead."""
IDLE_TIMEOUT: Final = 30.0
"""Seconds that a graceful shutdown waits for running work where the drain gives no deadline."""
_log = logging.getLogger(__name__)


class Group:
    """Made by `init_rpc`. Thread-safe.

    Membership news comes from the rendezvous' thread and from the agent's; `_lock` puts it in one order.
    """

    def __init__(
        self, agent: Agent, rendezvous: Rendezvous, stats_interval: float, world_size: int | None = None
    ) -> None:
        """With `world_size` a static group: that many members, who come and go together."""
        self.agent = agent
        self.world_size = world_size
        self._rendezvous = rendezvous
        self._record: MemberRecord | None = None
        self._lock = threading.Lock()  # guards _tracker, _epoch, _subscribers, _suspected
        self._changed = threading.Condition(self._lock)
        self._tracker = MemberTracker()
        self._epoch = 0
        self._suspected: set[int] = set()
        self._subscribers: list[Changes] = []
        self._drain_callbacks: list[Callable[[DrainRequest], None]] = []
        self._drain: DrainRequest | None = None
        self._drain_lock = threading.Lock()  # guards _drain, _drain_callbacks
        self._parting = False
        """All members end: that others go is no news."""
        self._ended = threading.Event()
        self._ending = threading.Lock()  # held by the one thread that ends the membership
        self.collectives = Collectives(agent, self._is_here)
        self.roster: list[str] = []
        """Of a static group: the names of all who came, whatever became of them."""
        self._stats = StatsPublisher(agent, rendezvous, stats_interval)
        self.when_drained_unheard: Callable[[DrainRequest], None] | None = None
        """What becomes of a drain that no callback listens to."""
        agent.on_unreachable = self._unreachable
        agent.on_reachable = self._reachable
        agent.on_refused = self._refused
        agent.on_unknown = self._refresh
        if not rendezvous.has_leases:
            agent.on_caller_lost = self._look_after
        if self.is_static:
            agent.on_goodbye = self._goodbye

    def join(self, record: MemberRecord, timeout: float = JOIN_TIMEOUT) -> None:
        """Enter; `serve` follows. Raises `JoinError`, `MemberExistsError`, `RendezvousUnavailableError`, having left
        nothing behind.
        """
        try:
            admission = admit_all if self.is_static else admit
            stored = self._rendezvous.join(record, admit=admission, listener=_Listener(self), timeout=timeout)
        except BaseException:
            self.agent.close()
            self._rendezvous.close()
            raise
        self._record = stored
        self.roster = sorted(self._rendezvous.view().members) if self.is_static else []
        self.collectives.start()
        self.agent.become(stored)

    def serve(self) -> None:
        """Answer the others; what they call here finds the group in place."""
        use_context(self.agent.references)
        use_container(self.agent.autograd)
        self.agent.serve()
        self._stats.start()

    @property
    def is_static(self) -> bool:
        return self.world_size is not None

    # -- who is here --------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """This worker's."""
        return self.agent.name

    @property
    def epoch(self) -> int:
        """The revision of the last membership change that this worker has seen."""
        return self._epoch

    @property
    def me(self) -> MemberRecord:
        if self._record is None:
            raise NotInitializedError("this worker has not joined the group")
        return self._record

    def members(self, role: str | None = None) -> list[MemberRecord]:
        """Who is here now, by id; with `role` only those of it."""
        self._refresh()
        with self._lock:
            members = list(self._tracker.members.values())
        return sorted((m for m in members if role is None or m.role == role), key=lambda m: m.id)

    @property
    def reverse_device_maps(self) -> dict[str, DeviceMap]:
        """For each member that has a device map for this worker: from this worker's devices back to that one's."""
        return reverse_maps(self.me, self.members())

    @property
    def devices(self) -> list[torch.device]:
        """The devices that calls to and from this worker use: see `rpcgroup.devices.device_list`."""
        return device_list(self.me, self.members())

    def wait_for(
        self, count: int, role: str | None = None, timeout: float | None = None
    ) -> list[MemberRecord]:
        """Wait until at least `count` members (of `role`) are here; raises `GroupError` after `timeout` seconds."""
        self.agent.reactor.step_aside()

        def enough() -> bool:
            members = self._tracker.members.values()
            return sum(role is None or m.role == role for m in members) >= count or self._ended.is_set()

        with self._changed:
            there = self._changed.wait_for(enough, timeout)
        members = self.members(role)
        if not there or len(members) < count:
            what = f"of role {role!r} " if role else ""
            raise GroupError(f"{len(members)} members {what}are here, {count} were waited for ({timeout} s)")
        return members

    def changes(self) -> Changes:
        """What happens to the membership from now on, in order: an iterator, also an asynchronous one.

        It ends when this worker leaves. Take it before `members` to miss nothing.
        """
        changes = Changes(self._unsubscribe, self.agent.reactor.step_aside)
        with self._lock:
            if self._ended.is_set():
                changes.end()
            else:
                self._subscribers.append(changes)
        return changes

    def _unsubscribe(self, changes: Changes) -> None:
        with self._lock:
            if changes in self._subscribers:
                self._subscribers.remove(changes)

    def executor(self, role: str | None = None, *, tasks_per_worker: int = 1) -> GroupExecutor:
        """A `concurrent.futures.Executor` over whoever is here: see `GroupExecutor`."""
        return GroupExecutor(self, role, tasks_per_worker)

    @property
    def kv(self) -> KeyValue:
        """Small values shared by the group, with watch."""
        return self._rendezvous.kv

    def progress(self, **values: Any) -> None:
        """Show these in `rpcgroup status` and `top`: JSON values by name, the latest of each name counts."""
        self._stats.progress.update(values)

    # -- leaving ------------------------------------------------------------------------------------------

    def on_drain(self, callback: Callable[[DrainRequest], None]) -> None:
        """Call back when this worker is asked to leave; at once where it has been already.

        The callback gets `deadline` (unix seconds) and `reason`, in a thread of the pool. The program then ends
        its work and calls `shutdown`, by the deadline: after it the worker is taken out.
        """
        with self._drain_lock:
            self._drain_callbacks.append(callback)
            request = self._drain
        if request is not None:
            self.agent.pool.submit(partial(_call_back, callback, request))

    def drain(self, request: DrainRequest) -> None:
        """This worker is asked to leave: by the operator, the driver, a user, or a signal."""
        with self._drain_lock:
            if self._drain is not None:
                return
            self._drain = request
            callbacks = list(self._drain_callbacks)
        _log.info("asked to leave within %.0f s: %s", request.deadline - time.time(), request.reason)
        self._update_state(MemberState.DRAINING)
        for callback in callbacks:
            _call_back(callback, request)
        if not callbacks and self.when_drained_unheard is not None:
            self.when_drained_unheard(request)

    @property
    def is_drained(self) -> bool:
        """This worker has been asked to leave."""
        return self._drain is not None

    def leave(self, graceful: bool, timeout: float | None = None) -> None:
        """End the membership; graceful: when the calls under way are through, both mine and others' to me, and in a
        static group when all members do the same.

        `timeout` in seconds bounds the wait; default: the drain's deadline, else `IDLE_TIMEOUT`, or in a static
        group none. A dead member never blocks it. Idempotent; a second caller waits for the first. Raises
        `GroupError`, having left, where members of a static group did not come in time.
        """
        self.agent.reactor.step_aside()
        with self._ending:
            if self._ended.is_set():
                return
            try:
                if graceful:
                    self._finish_work(timeout)
            finally:
                self._end()

    def _finish_work(self, timeout: float | None) -> None:
        if timeout is None and self._drain:
            timeout = max(1.0, self._drain.deadline - time.time())
        if self.is_static:
            finish_together(self.agent, self.collectives, self.roster, timeout)
            self.part()
            return
        self._update_state(MemberState.DRAINING)
        finish_alone(self.agent, IDLE_TIMEOUT if timeout is None else timeout)

    def part(self) -> None:
        """All members end, and nobody has work any more: refuse calls, and see that the last answers arrive."""
        self._parting = True
        self.agent.finish_serving(LEAVE_TIMEOUT)

    def _end(self) -> None:
        self._stats.close()
        self.collectives.close()
        # First, or peers that see the record go would drop my sessions under my links.
        self.agent.close_links()
        self._rendezvous.leave(LEAVE_TIMEOUT if self._rendezvous.has_leases else ONLY_FAREWELL_TIMEOUT)
        self._rendezvous.close()
        use_context(None)
        use_container(None)
        self.agent.close()
        with self._changed:
            self._ended.set()
            subscribers = list(self._subscribers)
            self._changed.notify_all()
        for changes in subscribers:
            changes.end()

    def _refresh(self) -> None:
        try:
            self._rendezvous.refresh()
        except RendezvousError as exc:
            _log.debug("the rendezvous was not asked for news: %s", exc)

    def _update_state(self, state: MemberState) -> None:
        if self._record is None or self._record.state is state or self.is_static:
            return
        try:
            self._record = self._rendezvous.update(state=state)
        except RendezvousError as exc:
            _log.warning("could not announce the state %s: %s", state.value, exc)

    # -- news ---------------------------------------------------------------------------------------------

    def viewed(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
        """From the rendezvous."""
        missing = self._apply(events, view.epoch)
        for record in missing:
            self._look_after(record.incarnation)

    def _look_after(self, incarnation: int) -> None:
        """Find out whether that member lives."""

        def look() -> None:
            if self._parting:
                return
            self._refresh()  # it may be so new that it is not known here
            self.agent.probe(incarnation)

        self.agent.chores.submit(look)

    def _unreachable(self, name: str, incarnation: int) -> None:
        self._apply([Unreachable(name, incarnation)])

    def _reachable(self, name: str, incarnation: int) -> None:
        self._apply([Reachable(name, incarnation)])

    def _refused(self, name: str, incarnation: int) -> None:
        """Its host says that nobody listens where that member was: its process has ended, most likely.

        That is told once of an incarnation: whom I alone cannot reach would come and go with each call.
        """
        if name == self.name or self._parting:
            return
        with self._lock:
            record = self._tracker.members.get(name)
            if record is None or record.incarnation != incarnation or incarnation in self._suspected:
                return
            self._suspected.add(incarnation)
        self.agent.chores.submit(partial(self._suspect, record))

    def _goodbye(self, incarnation: int) -> None:
        """A member of a static group leaves before the others do, and tells it to those that it is connected to."""
        if self._parting:
            return
        with self._lock:
            record = next((r for r in self._tracker.members.values() if r.incarnation == incarnation), None)
        if record is not None:
            self.agent.chores.submit(partial(self._suspect, replace(record, state=MemberState.LEAVING)))

    def _suspect(self, record: MemberRecord) -> None:
        try:
            self._rendezvous.suspect(record)
        except RendezvousError as exc:
            _log.info("%s looks dead, and the rendezvous was not told: %s", record.name, exc)

    def _apply(self, events: Sequence[TrackerEvent], epoch: int = 0) -> list[MemberRecord]:
        """Bring tracker and agent up to date, then tell who listens; returns the members whose record has gone
        without a word. Does not block.

        The agent first: whoever hears that a member has come can call it, and whoever hears that one has gone is
        told so by a call.
        """
        with self._changed:
            before = {r.incarnation for r in self._tracker.missing}
            changes = [change for event in events for change in self._tracker.handle(event)]
            self._epoch = max(self._epoch, epoch)
            for change in changes:
                self._remove(change)
            for record in self._tracker.members.values():
                self.agent.add_member(record)
            for change in changes:
                for subscriber in self._subscribers:
                    subscriber.put(change)
            missing = [r for r in self._tracker.missing if r.incarnation not in before]
            self._changed.notify_all()
        if events:
            self.collectives.members_changed()
        return missing

    def _remove(self, change: Change) -> None:
        if change.member.name == self.name:
            return  # evicted by mistake: the seat puts the record back, and I know that I live
        if change.kind is ChangeKind.LEFT:
            self.agent.remove_member(change.member, "has left the group", in_order=True)
        elif change.kind is ChangeKind.DIED:
            self.agent.remove_member(change.member, "has died")
            _log.warning("%s has died", change.member.name)

    def _is_here(self, name: str) -> bool:
        """It is a member, as far as anybody knows, and can be reached."""
        with self._lock:
            return self._tracker.status(name) in (MemberStatus.PRESENT, MemberStatus.MISSING)

    def is_unreachable(self, name: str) -> bool:
        with self._lock:
            return self._tracker.status(name) is MemberStatus.UNREACHABLE


class _Listener:
    """The group's ear at the rendezvous; must not block there."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
        self._group.viewed(view, events)

    def on_drain(self, request: DrainRequest) -> None:
        self._group.agent.chores.submit(partial(self._group.drain, request))


def _call_back(callback: Callable[[DrainRequest], None], request: DrainRequest) -> None:
    try:
        callback(request)
    except Exception:
        _log.exception("an on_drain callback failed")
