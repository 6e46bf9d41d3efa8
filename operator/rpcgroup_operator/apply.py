"""The plan's actions, done: pods made, asked to leave and deleted, members evicted.

Each is safe to repeat: who plans starts from what is there, not from what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rpcgroup.control.model import RPCGroup
from rpcgroup.control.plan import Action, Create, Delete, Drain, Evict, Restart
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi
from rpcgroup_operator.events import Events
from rpcgroup_operator.members import GroupKey, Members
from rpcgroup_operator.metrics import Metrics
from rpcgroup_operator.pods import Pod, is_of
from rpcgroup_operator.store import Group, Store

__all__ = ["Apply", "Work"]

TERMINATING: Final = "NamespaceTerminating"


@dataclass(frozen=True)
class Work:
    """What every action of one reconcile needs: the group, and where its workers meet. `now` is unix seconds."""

    group: Group
    spec: RPCGroup
    rendezvous: render.Rendezvous
    failures: Mapping[str, int]
    """Of each pod that has failed: how often in a row."""
    now: float


class Apply:
    def __init__(
        self, api: KubeApi, members: Members, store: Store, events: Events, metrics: Metrics
    ) -> None:
        self._api = api
        self._members = members
        self._store = store
        self._events = events
        self._metrics = metrics
        self._told: set[str] = set()
        """Pods (UIDs) whose workers this process has asked to leave."""
        self._failures: dict[tuple[GroupKey, str], int] = {}
        """Of pods that were deleted to be made anew, and are not there yet: a finalizer may hold the old one."""

    async def apply(self, work: Work, action: Action) -> None:
        self._metrics.actions.labels(type(action).__name__.lower()).inc()
        match action:
            case Create():
                await self._create(work, action)
            case Restart(name):
                await self._restart(work, name)
            case Drain(name, deadline, reason):
                await self._drain(work, name, deadline, reason)
            case Evict(name):
                await self._evict(work.group, name)
            case Delete(name, grace):
                await self._delete(work.group, name, grace)

    def forget(self, key: GroupKey) -> None:
        for place in [place for place in self._failures if place[0] == key]:
            del self._failures[place]

    async def remind(self, group: Group, pod: Pod) -> None:
        """The request to leave may have been written on the pod by an operator that died before it told the worker."""
        if pod.uid not in self._told:
            await self._tell(group, pod, pod.drain_deadline, "asked to leave")

    async def _create(self, work: Work, create: Create) -> None:
        group = work.group
        failures = self._failures.get((group.key, create.name), 0)
        body = render.pod(work.spec, group.uid, create, work.rendezvous, failures)
        try:
            raw = await self._api.create(paths.pods(group.key[0]), body)
        except ApiError as exc:
            if exc.reason == "AlreadyExists":
                raw = await self._own(group, create.name)
            else:
                if TERMINATING not in exc.causes:  # the group is about to go as well
                    self._events.warn(group, "FailedCreate", f"pod {create.name}: {exc}")
                raise
        else:
            self._failures.pop((group.key, create.name), None)
            self._events.normal(group, "Created", f"pod {create.name}")
        self._store.put_raw_pod(raw)

    async def _own(self, group: Group, name: str) -> render.Object:
        """The pod that is there, if it is the group's. Raises `ApiError` where it is not."""
        raw = await self._api.get(paths.pod(group.key[0], name))
        if not render.is_owned(raw, group.uid):
            if "deletionTimestamp" not in raw["metadata"]:  # a predecessor's goes by itself
                self._events.warn(group, "NameTaken", f"pod {name} exists and is not of this group")
            raise ApiError(409, "AlreadyExists", f"pod {name} exists and is not of this group")
        return raw

    async def _restart(self, work: Work, name: str) -> None:
        """In place of the failed pod another one of its name, which knows how often that has happened."""
        key, failures = work.group.key, work.failures[name]
        pod = self._store.pods(key)[name]
        self._failures[key, name] = failures
        await self._api.delete(paths.pod(key[0], name), grace=0, uid=pod.uid)
        self._store.mark_deleting(key, name, pod.uid)
        self._events.warn(work.group, "Restarting", f"pod {name}: it has failed {failures} times in a row")
        await self._create(work, Create(name, pod.role, pod.index))

    async def _drain(self, work: Work, name: str, deadline: float, reason: str) -> None:
        group = work.group
        pod = self._store.pods(group.key)[name]
        raw = await self._api.merge(paths.pod(group.key[0], name), render.drain_mark(pod.uid, deadline))
        self._store.put_raw_pod(raw)
        self._events.normal(group, "Draining", f"{name}: {reason}; it has {deadline - work.now:.0f} s")
        await self._tell(group, pod, deadline, reason)

    async def _tell(self, group: Group, pod: Pod, deadline: float, reason: str) -> None:
        await self._members.drain(group.key, pod.name, DrainRequest(deadline, reason))
        self._told.add(pod.uid)

    async def _evict(self, group: Group, name: str) -> None:
        pod, record = self._store.pods(group.key).get(name), self._members.of(group.key).get(name)
        if record is not None and pod is not None and is_of(record, pod):
            await self._members.evict(group.key, name)

    async def _delete(self, group: Group, name: str, grace: float) -> None:
        pod = self._store.pods(group.key)[name]
        await self._api.delete(paths.pod(group.key[0], name), grace=grace, uid=pod.uid)
        self._store.mark_deleting(group.key, name, pod.uid)
        self._told.discard(pod.uid)
        self._events.normal(group, "Deleted", f"pod {name}")
