"""A group's place in etcd: its user and role, and in the end the removal of all that it had there.

    made:     mark, role, user          (before the group's first pod)
    removed:  user, role, keys, mark    (after its last)

An operator that ends between any two of these leaves the mark, and the next one goes on from there: each step can
be repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rpcgroup.membership.etcd.administrator import Administrator
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.etcd.keys import GroupKeys
from rpcgroup.membership.etcd.users import Authentication, Users, enable_authentication
from rpcgroup_operator.marks import Marks
from rpcgroup_operator.members import GroupKey

__all__ = ["Account", "EtcdAccess", "Places"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EtcdAccess:
    """How the operator gets into etcd, and what it may give to others of that."""

    endpoints: tuple[str, ...]
    credentials: EtcdCredentials
    is_ours: bool = False
    """Of the chart: the operator turns authentication on there, as root."""
    password_key: bytes = field(default=b"", repr=False)
    """Of the groups' passwords; empty: groups get no users."""


@dataclass(frozen=True)
class Account:
    """What a worker needs to get into etcd; empty where etcd asks for no such thing. `ca` is PEM."""

    username: str = ""
    password: str = field(default="", repr=False)
    ca: bytes = b""


class Places:
    """Each request raises `RendezvousError`, and is then to be repeated."""

    def __init__(self, client: EtcdClient, access: EtcdAccess, owner: str) -> None:
        self._access = access
        self._users = Users(client)
        self._administrator = Administrator(client)
        self._marks = Marks(client, owner)
        self._marked: dict[GroupKey, str] = {}
        self._opened: int | None = None
        self._turn = asyncio.Lock()
        """One change of users at a time: each makes etcd refuse what else is under way."""
        self.authentication = Authentication.OFF

    @property
    def marked(self) -> Collection[GroupKey]:
        """Groups that have a place, of this process or of an operator before it."""
        return self._marked

    @property
    def has_users(self) -> bool:
        """Groups get users of their own."""
        return self.authentication is Authentication.ADMINISTRATOR and bool(self._access.password_key)

    @property
    def has_ca(self) -> bool:
        return bool(self._access.credentials.ca_file or self._access.credentials.ca_pem)

    async def open(self, store: int) -> None:
        """To be done before all else, and again for each number of the `store`: it may be another one, and empty."""
        async with self._turn:
            if self._opened == store:
                return
            if self._access.is_ours:
                await asyncio.to_thread(self._enable)
            self.authentication = await asyncio.to_thread(self._users.authentication)
            self._marked = await asyncio.to_thread(self._marks.read)
            self._opened = store
            self._say()

    async def make(self, group: GroupKey, uid: str) -> Account:
        """Where it is there already, whatever does not fit is mended."""
        if self._marked.get(group) != uid:
            if group in self._marked:  # of a group of this name that was there before
                await self.remove(group)
            await asyncio.to_thread(self._marks.put, group, uid)
            self._marked[group] = uid
        keys, ca = GroupKeys(*group), self._access.credentials.ca() or b""
        if not self.has_users:
            return Account(ca=ca)
        password = self._password(group, uid)
        async with self._turn:
            await asyncio.to_thread(self._users.make, keys, password)
        return Account(keys.user, password, ca)

    async def remove(self, group: GroupKey) -> None:
        """Nothing for groups that have no mark of this operator: the same etcd may hold groups of others."""
        if group not in self._marked:
            return
        keys = GroupKeys(*group)
        if self.authentication is Authentication.ADMINISTRATOR:
            async with self._turn:
                await asyncio.to_thread(self._users.remove, keys)
        await asyncio.to_thread(self._administrator.purge, keys)
        await asyncio.to_thread(self._marks.remove, group)
        del self._marked[group]

    def _password(self, group: GroupKey, uid: str) -> str:
        """Always the same, so that nobody has to be asked for it: neither the group's Secret nor etcd's store."""
        return hmac.new(
            self._access.password_key, "/".join([*group, uid]).encode(), hashlib.sha256
        ).hexdigest()

    def _enable(self) -> None:
        nobody = replace(self._access.credentials, username="", password="")
        with closing(EtcdClient(self._access.endpoints, nobody)) as client:
            enable_authentication(client, self._access.credentials.password)

    def _say(self) -> None:
        where = ",".join(self._access.endpoints)
        if self.authentication is Authentication.OFF:
            _log.warning("etcd at %s has no authentication: who reaches it can change every group", where)
        elif self.authentication is Authentication.ORDINARY:
            _log.warning(
                "this operator may not manage the users of etcd at %s: groups get none of their own, and their "
                "workers need credentials by their pod template",
                where,
            )
        elif not self.has_users:
            _log.warning("groups get no users in etcd at %s: the operator was told no --secret", where)
        else:
            _log.info("each group gets a user of its own in etcd at %s", where)
