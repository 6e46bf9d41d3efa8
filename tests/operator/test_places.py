"""A group's place in etcd, made and removed by operators that may end between any two steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rpcgroup.contract import ETCD_OPERATOR_ROOT
from rpcgroup.errors import RendezvousUnavailableError
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.auth_messages import USER_GET, UserGetRequest
from rpcgroup.membership.etcd.client import EtcdClient, EtcdRefusedError
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.messages import (
    PUT,
    RANGE,
    Method,
    PutRequest,
    RangeRequest,
    prefix_end,
)
from rpcgroup.membership.etcd.users import Authentication
from rpcgroup_operator.places import EtcdAccess, Places

GROUP, KEYS = ("ns", "g"), GroupKeys("ns", "g")
ROOT = EtcdCredentials(username="root", password="secret")
ME = "cluster/namespace/lease"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), "--bcrypt-cost", "4") as server:
        yield server


@pytest.fixture
def etcd(server: EtcdServer) -> Iterator[EtcdClient]:
    with closing(EtcdClient([server.endpoint], ROOT)) as client:
        yield client
        asyncio.run(cleared(client))


async def cleared(client: EtcdClient) -> None:
    places = await opened(client)
    for group in list(places.marked):
        await places.remove(group)


def access(client: EtcdClient) -> EtcdAccess:
    return EtcdAccess(tuple(client._endpoints), ROOT, is_ours=True, password_key=b"key")


async def opened(client: EtcdClient, owner: str = ME) -> Places:
    places = Places(client, access(client), owner)
    await places.open(0)
    return places


def keys(client: EtcdClient) -> list[str]:
    return [kv.key.decode() for kv in client.call(RANGE, RangeRequest(b"/", prefix_end(b"/"))).kvs]


def has_user(client: EtcdClient) -> bool:
    try:
        client.call(USER_GET, UserGetRequest(KEYS.user))
    except EtcdRefusedError:
        return False
    return True


def test_a_place_is_made_found_again_and_removed(etcd: EtcdClient) -> None:
    async def life() -> None:
        places = await opened(etcd)
        account = await places.make(GROUP, "uid-1")
        assert (account.username, len(account.password)) == (KEYS.user, 64)
        for key in (KEYS.value("k"), KEYS.member_stats("w")):
            etcd.call(PUT, PutRequest(key, b"v"))

        successor = await opened(etcd)
        assert list(successor.marked) == [GROUP]
        assert await successor.make(GROUP, "uid-1") == account, "nobody need remember the password"
        await successor.remove(GROUP)
        assert keys(etcd) == []
        assert not has_user(etcd)

    asyncio.run(life())


def test_a_group_of_the_same_name_inherits_nothing(etcd: EtcdClient) -> None:
    async def life() -> None:
        first = await (await opened(etcd)).make(GROUP, "uid-1")
        etcd.call(PUT, PutRequest(KEYS.value("k"), b"v"))
        second = await (await opened(etcd)).make(GROUP, "uid-2")
        assert second.password != first.password
        assert keys(etcd) == [f"{ETCD_OPERATOR_ROOT}/{ME}/ns/g"]
        old = EtcdCredentials(username=first.username, password=first.password)
        with (
            closing(EtcdClient(list(etcd._endpoints), old)) as client,
            pytest.raises(EtcdRefusedError, match="invalid user ID or password"),
        ):
            client.call(RANGE, RangeRequest(KEYS.members))

    asyncio.run(life())


def test_groups_of_another_operator_are_left_alone(etcd: EtcdClient) -> None:
    async def life() -> None:
        theirs = await opened(etcd, "another/namespace/lease")
        await theirs.make(GROUP, "uid-1")
        mine = await opened(etcd)
        assert not mine.marked
        await mine.remove(GROUP)
        assert has_user(etcd)
        await theirs.remove(GROUP)

    asyncio.run(life())


class Dying(EtcdClient):
    """Its process ends at the so many-th request that changes something."""

    def __init__(self, endpoints: list[str], steps: int) -> None:
        super().__init__(endpoints, ROOT)
        self.left = steps

    def retry(self, method: Method[Any, Any], request: Any, seconds: float) -> Any:
        if not method.name.endswith(("Get", "Status", "Range")) or method.name == "DeleteRange":
            self.left -= 1
            if self.left < 0:
                raise RendezvousUnavailableError("the operator has died")
        return super().retry(method, request, seconds)


def test_whoever_comes_after_an_operator_that_died_goes_on(etcd: EtcdClient) -> None:
    """At each step of making a place, of replacing it, and of removing it."""

    async def dies_after(steps: int) -> bool:
        with closing(Dying(list(etcd._endpoints), steps)) as client:
            places = await opened(client)
            try:
                await places.make(GROUP, "uid-1")
                await places.make(GROUP, "uid-2")
                await places.remove(GROUP)
            except RendezvousUnavailableError:
                return True
            return False

    async def life() -> None:
        steps = 0
        while await dies_after(steps):
            steps += 1
            after = await opened(etcd)
            if steps % 2:
                account = await after.make(GROUP, "uid-2")
                who = EtcdCredentials(username=account.username, password=account.password)
                with closing(EtcdClient(list(etcd._endpoints), who)) as client:
                    client.call(PUT, PutRequest(KEYS.value("k"), b"v"))
            for group in list(after.marked):
                await after.remove(group)
            assert keys(etcd) == []
            assert not has_user(etcd)
        assert steps == 22, "each was the last one once"

    asyncio.run(life())


def test_without_authentication_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def life(client: EtcdClient) -> None:
        with caplog.at_level(logging.WARNING):
            places = Places(client, EtcdAccess((server.endpoint,), EtcdCredentials(), password_key=b"k"), ME)
            await places.open(0)
        assert places.authentication is Authentication.OFF
        assert "has no authentication" in caplog.text
        account = await places.make(GROUP, "uid-1")
        assert not account.password
        await places.remove(GROUP)
        assert keys(client) == []

    with EtcdServer(tmp_path) as server, closing(EtcdClient([server.endpoint])) as client:
        asyncio.run(life(client))
