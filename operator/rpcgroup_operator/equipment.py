"""What a group has besides its pods: made before its first pod, gone with it."""

from __future__ import annotations

import secrets

from rpcgroup.control.model import RPCGroup
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi
from rpcgroup_operator.members import GroupKey, Members
from rpcgroup_operator.store import Group

__all__ = ["Equipment"]


class Equipment:
    """A group's secret, its disruption budget, and its keys in etcd."""

    def __init__(self, api: KubeApi, members: Members) -> None:
        self._api = api
        self._members = members
        self._made: dict[GroupKey, tuple[str, int]] = {}
        """Groups that have theirs, by UID and generation."""

    async def make(self, group: Group, spec: RPCGroup) -> None:
        version = group.uid, group.generation
        if self._made.get(group.key) == version:
            return
        await self._make_secret(group, spec)
        await self._make_budget(group, spec)
        self._made[group.key] = version

    async def remove(self, key: GroupKey) -> None:
        """After the group. What it owned in the API server goes by its owner references.

        Only of a group that was this operator's: the same etcd may hold groups of other operators, and such as
        people have made by hand.
        """
        if key in self._made:
            await self._members.purge(key)
            del self._made[key]

    async def _make_secret(self, group: Group, spec: RPCGroup) -> None:
        body = render.secret(spec, group.uid, secrets.token_hex(32))
        try:
            await self._api.create(paths.secrets(group.key[0]), body)
        except ApiError as exc:
            if exc.reason != "AlreadyExists":
                raise

    async def _make_budget(self, group: Group, spec: RPCGroup) -> None:
        path = paths.budget(*group.key)
        if spec.spec.min_replicas:
            await self._api.apply(path, render.disruption_budget(spec, group.uid))
        else:
            await self._api.delete(path)
