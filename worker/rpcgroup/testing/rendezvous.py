"""What tests of a rendezvous, or over one, need: a listener that can be waited for, and places to meet."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.lease import revoke
from rpcgroup.membership.etcd.messages import RANGE, RangeRequest
from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous
from rpcgroup.membership.record import MemberRecord
from rpcgroup.membership.rendezvous import (
    DrainRequest,
    GroupView,
    RecordEvent,
    RecordGone,
    RecordPut,
    Rendezvous,
)
from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.dynamic import DynamicRendezvous
from rpcgroup.membership.url import open_rendezvous, parse_rendezvous_url

__all__ = ["EtcdPlace", "MemoryPlace", "Place", "RecordingListener", "StorePlace"]

WAIT_SECONDS = 20.0
LOOK_INTERVAL = 0.01
"""Seconds: how soon a seat over a store sees what others have done."""

_groups = itertools.count()


class RecordingListener:
    """A `GroupListener` that keeps what it was told. Read its lists after a `wait`."""

    def __init__(self) -> None:
        self._told = threading.Condition()  # guards all lists
        self._inside = threading.Lock()  # held during a call: there may be one at a time
        self.views: list[GroupView] = []
        self.events: list[RecordEvent] = []
        self.drains: list[DrainRequest] = []

    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
        with self._alone(), self._told:
            self.views.append(view)
            self.events += events
            self._told.notify_all()

    def on_drain(self, request: DrainRequest) -> None:
        with self._alone(), self._told:
            self.drains.append(request)
            self._told.notify_all()

    def wait(self, what: Callable[[RecordingListener], object], seconds: float = WAIT_SECONDS) -> None:
        """Until `what(self)` is true; AssertionError with the story so far after `seconds`."""
        with self._told:
            if not self._told.wait_for(lambda: what(self), seconds):
                raise AssertionError(f"not told within {seconds} s; told: {self.story()}, {self.drains}")

    def wait_for_names(self, *names: str) -> None:
        """Until just these are in the view."""
        self.wait(lambda me: me.views and set(me.views[-1].members) == set(names))

    def story(self, name: str = "") -> list[str]:
        """The events as `+name:state` and `-name:state`, all or of one member."""
        return [
            f"{'+' if isinstance(event, RecordPut) else '-'}{event.record.name}:{event.record.state.value}"
            for event in self.events
            if name in ("", event.record.name)
        ]

    def put(self, name: str) -> list[MemberRecord]:
        return [e.record for e in self.events if isinstance(e, RecordPut) and e.record.name == name]

    def gone(self, name: str) -> list[MemberRecord]:
        return [e.record for e in self.events if isinstance(e, RecordGone) and e.record.name == name]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._inside.acquire(blocking=False):
            raise AssertionError("the listener was called twice at a time")
        try:
            yield
        finally:
            self._inside.release()


class Place(Protocol):
    """A group to meet in, and power over its leases. What it opens, its `ExitStack` closes."""

    def open(self) -> Rendezvous:
        """A new seat."""
        ...

    def another(self) -> Place:
        """A place where another group meets."""
        ...

    def expire(self, name: str) -> None:
        """End a member's lease."""
        ...

    def outage(self) -> AbstractContextManager[object]:
        """The rendezvous is away during the block."""
        ...


class MemoryPlace:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._group = MemoryGroup()

    def open(self) -> Rendezvous:
        seat = MemoryRendezvous(self._group)
        self._stack.callback(seat.close)
        return seat

    def another(self) -> MemoryPlace:
        return MemoryPlace(self._stack)

    def expire(self, name: str) -> None:
        self._group.expire(name)

    def outage(self) -> AbstractContextManager[object]:
        return self._group.outage()


class StorePlace:
    """A dynamic group over a store: `connect` opens that of the group it is given. There are no leases: `expire` is
    what a member does that finds another dead.
    """

    def __init__(self, stack: ExitStack, connect: Callable[[str], Store]) -> None:
        self._stack = stack
        self._connect = connect
        self._group = f"place-{next(_groups)}"

    def open(self) -> Rendezvous:
        seat = DynamicRendezvous(StoreClient(self._connect(self._group)), LOOK_INTERVAL)
        self._stack.callback(seat.close)
        return seat

    def another(self) -> StorePlace:
        return StorePlace(self._stack, self._connect)

    def expire(self, name: str) -> None:
        seat = self.open()
        member = seat.view().members.get(name)
        if member is not None:
            seat.suspect(member)

    def outage(self) -> AbstractContextManager[object]:
        raise NotImplementedError("a store that is away does not come back")


class EtcdPlace:
    """A new group in `server`; an `outage` kills that server and starts it again."""

    def __init__(self, stack: ExitStack, server: EtcdServer, lease_ttl: int = 10) -> None:
        self._stack = stack
        self._server = server
        self._ttl = lease_ttl
        self.url = f"etcd://{server.endpoint}/tests/place-{next(_groups)}"
        parsed = parse_rendezvous_url(self.url)
        self.keys = GroupKeys(parsed.namespace, parsed.group)
        self.client = EtcdClient(parsed.places)
        stack.callback(self.client.close)

    def open(self) -> Rendezvous:
        seat = open_rendezvous(self.url, lease_ttl=self._ttl)
        self._stack.callback(seat.close)
        return seat

    def another(self) -> EtcdPlace:
        return EtcdPlace(self._stack, self._server, self._ttl)

    def expire(self, name: str) -> None:
        found = self.client.retry(RANGE, RangeRequest(self.keys.member(name)), WAIT_SECONDS).kvs
        if found:
            revoke(self.client, found[0].lease, WAIT_SECONDS)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self._server.kill()
        try:
            yield
        finally:
            self._server.start()
