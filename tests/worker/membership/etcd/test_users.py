"""A group's user in etcd: what it may, what it may not, and that each step of making it can be repeated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from rpcgroup.errors import RendezvousUnavailableError
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.auth_messages import ROLE_ADD, USER_ADD, RoleAddRequest, UserAddRequest
from rpcgroup.membership.etcd.client import EtcdClient, EtcdRefusedError
from rpcgroup.membership.etcd.codec import Kind, wire
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import (
    DELETE,
    GRANT,
    KEEP_ALIVE,
    PUT,
    RANGE,
    REVOKE,
    STATUS,
    TIME_TO_LIVE,
    TXN,
    Compare,
    DeleteRequest,
    GrantRequest,
    KeepAliveRequest,
    Method,
    PutRequest,
    RangeRequest,
    RequestOp,
    RevokeRequest,
    StatusRequest,
    TimeToLiveRequest,
    TxnRequest,
    prefix_end,
)
from rpcgroup.membership.etcd.rendezvous import EtcdRendezvous
from rpcgroup.membership.etcd.users import Authentication, Users, enable_authentication
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup.testing.rendezvous import RecordingListener

MINE, THEIRS = GroupKeys("ns", "mine"), GroupKeys("ns", "theirs")
TTL = 2
"""Seconds: the shortest lease there is."""


@dataclass
class Names:
    """The answers of UserList and RoleList, which only a test asks for."""

    found: list[str] = wire(2, Kind.STRING, repeated=True)  # noqa: RUF009


def names(client: EtcdClient) -> tuple[set[str], set[str]]:
    """All users and all roles."""
    users, roles = (
        client.call(Method(f"/etcdserverpb.Auth/{what}", StatusRequest, Names), StatusRequest())
        for what in ("UserList", "RoleList")
    )
    return set(users.found), set(roles.found)


def credentials(group: GroupKeys, password: str = "1") -> EtcdCredentials:
    return EtcdCredentials(username=group.user, password=password)


@pytest.fixture
def users(root_client: EtcdClient) -> Users:
    users = Users(root_client)
    users.make(MINE, "1")
    users.make(THEIRS, "1")
    return users


@pytest.fixture
def mine(secured_etcd: EtcdServer, users: Users) -> Iterator[EtcdClient]:
    with closing(EtcdClient([secured_etcd.endpoint], credentials(MINE))) as client:
        yield client


@pytest.fixture
def theirs(secured_etcd: EtcdServer, users: Users) -> Iterator[EtcdClient]:
    with closing(EtcdClient([secured_etcd.endpoint], credentials(THEIRS))) as client:
        yield client


# What etcd says of itself and of this client.
def test_who_may_manage_users(
    etcd_server: EtcdServer, secured_etcd: EtcdServer, root_client: EtcdClient, mine: EtcdClient
) -> None:
    assert Users(root_client).authentication() is Authentication.ADMINISTRATOR
    assert Users(mine).authentication() is Authentication.ORDINARY
    with closing(EtcdClient([secured_etcd.endpoint])) as nobody:
        assert Users(nobody).authentication() is Authentication.ORDINARY
    with closing(EtcdClient([etcd_server.endpoint])) as anybody:
        assert Users(anybody).authentication() is Authentication.OFF


def test_authentication_is_turned_on_once(secured_etcd: EtcdServer, root: EtcdCredentials) -> None:
    """And by several operators."""
    with closing(EtcdClient([secured_etcd.endpoint])) as client:
        enable_authentication(client, "another password")
    with closing(EtcdClient([secured_etcd.endpoint], root)) as client:
        assert Users(client).authentication() is Authentication.ADMINISTRATOR


def test_an_empty_store_gets_its_root_again(secured_etcd: EtcdServer, root: EtcdCredentials) -> None:
    secured_etcd.kill()
    secured_etcd.wipe()
    secured_etcd.start()
    with closing(EtcdClient([secured_etcd.endpoint], root)) as client:
        assert Users(client).authentication() is Authentication.OFF
        with closing(EtcdClient([secured_etcd.endpoint])) as nobody:
            enable_authentication(nobody, root.password)
        assert Users(client).authentication() is Authentication.ADMINISTRATOR


# Making and removing.
def test_what_is_made_goes_without_a_trace(users: Users, root_client: EtcdClient) -> None:
    made = names(root_client)
    assert made == ({"root", MINE.user, THEIRS.user}, {"root", MINE.user, THEIRS.user})
    users.remove(MINE)
    users.remove(MINE)
    assert names(root_client) == ({"root", THEIRS.user}, {"root", THEIRS.user})


def test_what_fits_is_left_alone(users: Users, mine: EtcdClient, root_client: EtcdClient) -> None:
    """A change would cost each client of etcd something."""
    mine.call(RANGE, RangeRequest(MINE.members))
    token = mine._login._token
    users.make(MINE, "1")
    mine.call(RANGE, RangeRequest(MINE.members))
    assert mine._login._token == token


def test_a_password_that_does_not_fit_is_mended(secured_etcd: EtcdServer, users: Users) -> None:
    users.make(MINE, "2")
    with closing(EtcdClient([secured_etcd.endpoint], credentials(MINE, "2"))) as client:
        client.call(RANGE, RangeRequest(MINE.members))
    with (
        closing(EtcdClient([secured_etcd.endpoint], credentials(MINE, "1"))) as client,
        pytest.raises(EtcdRefusedError, match="invalid user ID or password"),
    ):
        client.call(RANGE, RangeRequest(MINE.members))


class Breaking(EtcdClient):
    """Its requests that change something end with an error after so many, the last one applied or not."""

    def __init__(self, endpoints: Sequence[str], who: EtcdCredentials, allowed: int, applied: bool) -> None:
        super().__init__(endpoints, who)
        self.left = allowed
        self._applied = applied

    def retry(self, method: Method[Any, Any], request: Any, seconds: float) -> Any:
        if method.name.endswith(("Get", "Status")):
            return super().retry(method, request, seconds)
        self.left -= 1
        if self.left < 0:
            if self._applied:
                super().retry(method, request, seconds)
            raise RendezvousUnavailableError("the operator has died")
        return super().retry(method, request, seconds)


STEPS = {
    "make": (5, lambda users: users.make(MINE, "1")),
    "remove": (2, lambda users: users.remove(MINE)),
}


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("what", STEPS)
def test_it_can_end_at_every_step(
    secured_etcd: EtcdServer, root: EtcdCredentials, root_client: EtcdClient, what: str, applied: bool
) -> None:
    steps, do = STEPS[what]
    whole = Users(root_client)
    for allowed in range(steps):
        whole.remove(MINE)
        if what == "remove":
            whole.make(MINE, "1")
        with (
            closing(Breaking([secured_etcd.endpoint], root, allowed, applied)) as client,
            pytest.raises(RendezvousUnavailableError),
        ):
            do(Users(client))
        do(whole)
        if what == "remove":
            assert names(root_client) == ({"root"}, {"root"})
            continue
        with closing(EtcdClient([secured_etcd.endpoint], credentials(MINE))) as client:
            client.call(PUT, PutRequest(MINE.member("w"), b"v"))
            client.call(PUT, PutRequest(MINE.member_stats("w"), b"v"))
    with closing(Breaking([secured_etcd.endpoint], root, steps, applied)) as client:
        if what == "make":
            whole.remove(MINE)
        do(Users(client))
        assert client.left == 0, "no step was left out above"


def test_a_step_that_another_was_quicker_with_counts_as_done(root_client: EtcdClient) -> None:
    root_client.call(ROLE_ADD, RoleAddRequest(MINE.user))
    root_client.call(USER_ADD, UserAddRequest(MINE.user, "1"))
    users = Users(root_client)
    users.make(MINE, "1")
    users.make(MINE, "1")


# What a group's user may not.
LEASE = 4711
FORBIDDEN: dict[str, Callable[[EtcdClient], object]] = {
    "read a member": lambda c: c.call(RANGE, RangeRequest(THEIRS.member("w"))),
    "read all": lambda c: c.call(RANGE, RangeRequest(b"/rpcgroup/", prefix_end(b"/rpcgroup/"))),
    "read the figures": lambda c: c.call(RANGE, RangeRequest(THEIRS.stats, prefix_end(THEIRS.stats))),
    "read the operator's marks": lambda c: c.call(RANGE, RangeRequest(b"/rpcgroup-operator/x")),
    "compare": lambda c: c.call(TXN, TxnRequest([Compare(target=2, key=THEIRS.member("w"), mod_revision=1)])),
    "write": lambda c: c.call(PUT, PutRequest(THEIRS.member("v"), b"v")),
    "write in a transaction": lambda c: c.call(
        TXN, TxnRequest([], [RequestOp(request_put=PutRequest(THEIRS.member("v"), b"v"))])
    ),
    "delete": lambda c: c.call(DELETE, DeleteRequest(THEIRS.member("w"))),
    "ask to leave": lambda c: c.call(PUT, PutRequest(THEIRS.drain("w"), b"{}")),
    "put under their lease": lambda c: c.call(PUT, PutRequest(MINE.member("v"), b"v", LEASE)),
    "revoke their lease": lambda c: c.call(REVOKE, RevokeRequest(LEASE)),
    "make a user": lambda c: c.call(USER_ADD, UserAddRequest("x", "y")),
    "make a role": lambda c: c.call(ROLE_ADD, RoleAddRequest("x")),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_another_groups_is_out_of_reach(what: str, mine: EtcdClient, theirs: EtcdClient) -> None:
    theirs.call(GRANT, GrantRequest(60, LEASE))
    theirs.call(PUT, PutRequest(THEIRS.member("w"), b"v", LEASE))
    with pytest.raises(EtcdRefusedError) as caught:
        FORBIDDEN[what](mine)
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    (kept,) = theirs.call(RANGE, RangeRequest(THEIRS.members, prefix_end(THEIRS.members))).kvs
    assert (kept.value, kept.lease) == (b"v", LEASE)
    assert theirs.call(TIME_TO_LIVE, TimeToLiveRequest(LEASE)).ttl > 0


def test_all_of_its_own_is_in_reach(mine: EtcdClient) -> None:
    """Whatever a worker asks of etcd, with one lease over keys under both prefixes."""
    mine.call(GRANT, GrantRequest(60, LEASE))
    for key in (MINE.member("w"), MINE.member_stats("w"), MINE.value("k"), MINE.drain("w")):
        mine.call(PUT, PutRequest(key, b"v", LEASE))
        assert mine.call(RANGE, RangeRequest(key)).kvs
    assert mine.call(KEEP_ALIVE, KeepAliveRequest(LEASE)).ttl > 0
    mine.call(REVOKE, RevokeRequest(LEASE))
    assert mine.call(RANGE, RangeRequest(MINE.stats, prefix_end(MINE.stats))).kvs == []


def test_the_probe_is_answered(mine: EtcdClient) -> None:
    """Newer etcd lets none but root ask for its status: that is an answer too, and costs no channel."""
    generation = mine._generation
    try:
        mine.call(STATUS, StatusRequest())
    except EtcdRefusedError as exc:
        assert exc.code is grpc.StatusCode.PERMISSION_DENIED
    assert mine._generation == generation


# A worker's life under its group's user.
def test_a_worker_lives_under_its_groups_user(
    secured_etcd: EtcdServer, users: Users, root_client: EtcdClient
) -> None:
    with (
        closing(seat(secured_etcd)) as first,
        closing(seat(secured_etcd)) as second,
        closing(seat(secured_etcd)) as command,
    ):
        heard = [join(first, "w0"), join(second, "w1")]
        first.kv.put("k", b"v")
        first.put_stats(b"{}")
        assert second.kv.get("k") == b"v"
        assert command.stats() == {"w0": b"{}"}

        # An outage of three lease times; simple tokens do not outlive it.
        secured_etcd.kill()
        pass_time(3 * TTL)
        secured_etcd.start()
        first.update(state=MemberState.READY)
        heard[1].wait(lambda me: me.views[-1].members["w0"].state is MemberState.READY)

        # Users of other groups come and go meanwhile.
        for number in range(5):
            users.make(GroupKeys("ns", f"g{number}"), "1")
            second.update(labels={"n": str(number)})
            users.remove(GroupKeys("ns", f"g{number}"))
        heard[0].wait(lambda me: me.views[-1].members["w1"].labels == {"n": "4"})
        assert set(command.view().members) == {"w0", "w1"}

        command.request_drain("w0", DrainRequest(time.time() + 60, "why"))
        heard[0].wait(lambda me: me.drains)
        first.leave(10)
        heard[1].wait(lambda me: "-w0:leaving" in me.story())
        command.evict("w1")
        heard[1].wait(lambda me: "-w1:evicted" in me.story() or "+w1:evicted" in me.story())


def test_a_worker_outlives_a_store_that_came_back_empty(
    secured_etcd: EtcdServer, users: Users, root: EtcdCredentials
) -> None:
    """Once the operator has made its user again, with the same password."""
    with closing(seat(secured_etcd, 3 * TTL)) as worker, closing(seat(secured_etcd)) as command:
        join(worker, "w0")
        secured_etcd.kill()
        secured_etcd.wipe()
        secured_etcd.start()
        with closing(EtcdClient([secured_etcd.endpoint])) as nobody:
            enable_authentication(nobody, root.password)
        with closing(EtcdClient([secured_etcd.endpoint], root)) as client:
            Users(client).make(MINE, "1")
            until(lambda: client.retry(RANGE, RangeRequest(MINE.member("w0")), 4).kvs)
        worker.update(state=MemberState.READY)
        assert command.view().members["w0"].state is MemberState.READY


def pass_time(seconds: float) -> None:
    """An outage has a length, and this is it."""
    threading.Event().wait(seconds)


def until(condition: Callable[[], object]) -> None:
    deadline, pause = time.monotonic() + 20, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.02)


def seat(server: EtcdServer, ttl: int = TTL) -> EtcdRendezvous:
    return EtcdRendezvous(EtcdClient([server.endpoint], credentials(MINE)), MINE, ttl)


def join(place: EtcdRendezvous, name: str) -> RecordingListener:
    listener = RecordingListener()
    place.join(MemberRecord(name=name), admit=lambda mine, earlier: None, listener=listener, timeout=10)
    return listener
