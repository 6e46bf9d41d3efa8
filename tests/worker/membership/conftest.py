"""What the tests of the membership share: a listener that can be waited for, and places to meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

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
from rpcgroup.membership.url import open_rendezvous, parse_rendezvous_url
from rpcgroup.testing.etcd import etcd_server, etcd_url

__all__ = ["etcd_server", "etcd_url"]

WAIT = 20.0


class Listener:
    """Keeps what it was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self._told = threading.Condition()  # guards all of the following
        self.views: list[GroupView] = []
        self.events: list[RecordEvent] = []
        self.drains: list[DrainRequest] = []
        self._inside = threading.Lock()  # held during a call: there is one at a time

    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
        with self._alone(), self._told:
            self.views.append(view)
            self.events += events
            self._told.notify_all()

    def on_drain(self, request: DrainRequest) -> None:
        with self._alone(), self._told:
            self.drains.append(request)
            self._told.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        assert self._inside.acquire(blocking=False), "two calls at a time"
        try:
            yield
        finally:
            self._inside.release()

    def wait(self, what: Callable[[Listener], object]) -> None:
        with self._told:
            if not self._told.wait_for(lambda: what(self), WAIT):
                pytest.fail(f"not told within {WAIT} s; told: {self.story()}, {self.drains}")

    def wait_for_names(self, *names: str) -> None:
        self.wait(lambda me: me.views and set(me.views[-1].members) == set(names))

    def story(self, name: str = "") -> list[str]:
        """The events as `+name:state` and `-name:state`, all or of one member."""
        return [
            f"{'+' if isinstance(event, RecordPut) else '-'}{event.record.name}:{event.record.state.value}"
            for event in self.events
            if name in ("", event.record.name)
        ]

    def gone(self, name: str) -> list[MemberRecord]:
        return [e.record for e in self.events if isinstance(e, RecordGone) and e.record.name == name]

    def put(self, name: str) -> list[MemberRecord]:
        return [e.record for e in self.events if isinstance(e, RecordPut) and e.record.name == name]


class Place(Protocol):
    """A rendezvous under test: seats in one group, and power over its leases."""

    def open(self) -> Rendezvous:
        """A new seat, closed at the end of the test."""
        ...

    def expire(self, name: str) -> None:
        """End a member's lease."""
        ...

    def outage(self) -> AbstractContextManager[object]: ...


class MemoryPlace:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._group = MemoryGroup()

    def open(self) -> Rendezvous:
        seat = MemoryRendezvous(self._group)
        self._stack.callback(seat.close)
        return seat

    def expire(self, name: str) -> None:
        self._group.expire(name)

    def outage(self) -> AbstractContextManager[object]:
        return self._group.outage()


class EtcdPlace:
    """`server` is None for one that all tests share, which therefore never goes away."""

    def __init__(self, stack: ExitStack, url: str, server: EtcdServer | None, ttl: int = 10) -> None:
        self.url = url
        self._stack = stack
        self._server = server
        self._ttl = ttl
        parsed = parse_rendezvous_url(url)
        self.keys = GroupKeys(parsed.namespace, parsed.group)
        self.client = EtcdClient(parsed.places)
        stack.callback(self.client.close)

    def open(self) -> Rendezvous:
        seat = open_rendezvous(self.url, lease_ttl=self._ttl)
        self._stack.callback(seat.close)
        return seat

    def expire(self, name: str) -> None:
        found = self.client.retry(RANGE, RangeRequest(self.keys.member(name)), 5).kvs
        if found:
            revoke(self.client, found[0].lease, 5)

    @contextmanager
    def outage(self) -> Iterator[None]:
        assert self._server
        self._server.kill()
        yield
        self._server.start()


@pytest.fixture
def own_etcd(tmp_path: Path, etcd_server: EtcdServer) -> Iterator[EtcdServer]:
    """An etcd that the test may break. (The shared one has warmed gRPC up.)"""
    with EtcdServer(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def own_place(own_etcd: EtcdServer) -> Iterator[EtcdPlace]:
    """A group in an etcd that the test may break, with the shortest leases."""
    with ExitStack() as stack:
        yield EtcdPlace(stack, f"etcd://{own_etcd.endpoint}/tests/broken", own_etcd, ttl=2)


@pytest.fixture(params=["memory", "etcd"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(stack)
        else:
            yield EtcdPlace(stack, request.getfixturevalue("etcd_url"), None)


@pytest.fixture(params=["memory", "etcd"])
def breakable_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(stack)
        else:
            server = request.getfixturevalue("own_etcd")
            yield EtcdPlace(stack, f"etcd://{server.endpoint}/tests/broken", server, ttl=2)
