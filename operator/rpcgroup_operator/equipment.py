"""What a group has besides its pods: made before its first pod, gone with it."""

from __future__ import annotations

import secrets
import time

from rpcgroup.control.model import RPCGroup
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi, Object
from rpcgroup_operator.certificates import Certificates
from rpcgroup_operator.members import GroupKey, Members
from rpcgroup_operator.places import Places
from rpcgroup_operator.store import Group

__all__ = ["Equipment"]


class Equipment:
    """A group's place in etcd, its secrets and its disruption budget."""

    def __init__(self, api: KubeApi, members: Members, places: Places) -> None:
        self._api = api
        self._members = members
        self._places = places
        self._certificates = Certificates(api)
        self._made: dict[GroupKey, tuple[str, int, int]] = {}
        """Groups that have theirs, by UID, generation and the number of etcd's store."""

    async def make(self, group: Group, spec: RPCGroup) -> None:
        if spec.spec.security.tls:
            await self._certificates.make(group, spec, time.time())
        version = group.uid, group.generation, self._members.store
        if self._made.get(group.key) == version:
            return
        await self._places.open(self._members.store)
        account = await self._places.make(group.key, group.uid)
        await self._create_secret(group, render.secret(spec, group.uid, secrets.token_hex(32)))
        if account.ca or account.password:
            body = render.etcd_secret(spec, group.uid, account.password, account.ca)
            await self._create_secret(group, body)
        await self._make_budget(group, spec)
        self._made[group.key] = version

    async def remove(self, key: GroupKey) -> None:
        """After the group. What it owned in the API server goes by its owner references."""
        if key in self._places.marked and await self._is_there(key):
            return  # what is remembered here lags behind, and what is deleted in etcd does not come back
        await self._places.remove(key)
        self._certificates.forget(key)
        self._made.pop(key, None)

    async def _is_there(self, key: GroupKey) -> bool:
        return bool((await self._api.get(paths.group_if_any(*key)))["items"])

    async def _create_secret(self, group: Group, body: Object) -> None:
        """What is there already is as it should be: nobody can change it, and its name is of this group alone."""
        try:
            await self._api.create(paths.secrets(group.key[0]), body)
        except ApiError as exc:
            if exc.reason != "AlreadyExists":
                raise

    async def _make_budget(self, group: Group, spec: RPCGroup) -> None:
        """Read first: an operator that starts finds those of all groups as they should be."""
        path = paths.budget(group.key[0], render.budget_name(spec, group.uid))
        found = await self._budget(path)
        if not spec.spec.min_replicas:
            if found is not None:
                await self._api.delete(path)
            return
        wanted = render.disruption_budget(spec, group.uid)
        if found is None or any(found["spec"].get(k) != v for k, v in wanted["spec"].items()):
            await self._api.apply(path, wanted)

    async def _budget(self, path: str) -> Object | None:
        try:
            return await self._api.get(path)
        except ApiError as exc:
            if exc.status != 404:
                raise
            return None
