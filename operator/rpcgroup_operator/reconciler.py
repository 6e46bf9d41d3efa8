"""One group brought nearer to what is wanted: observe, plan, apply, report.

Level-triggered: every run sees the whole, and what a run could not do the next one does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.control.lifecycle import PodState
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.plan import Action, Create, Delete, Drain, Evict, Plan, Restart, plan
from rpcgroup.control.pod import ObservedPod
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi
from rpcgroup_operator.equipment import Equipment
from rpcgroup_operator.events import Events
from rpcgroup_operator.members import GroupKey, Members
from rpcgroup_operator.metrics import Metrics
from rpcgroup_operator.places import Places
from rpcgroup_operator.pods import Pod, is_of, joined_condition, observe
from rpcgroup_operator.status import rfc3339, status_from, status_to
from rpcgroup_operator.store import Group, Store
from rpcgroup_operator.turns import Turns

__all__ = ["MANAGER", "Reconciler"]

MANAGER: Final = "rpcgroup.dev/operator"
"""`spec.managedBy` of the groups that this operator looks after; also those that do not say."""
STATUS_SECONDS: Final = 0.5
"""Between two writes of a group's status: a thousand pods that come up are not a thousand writes."""
REQUESTS: Final = 16
"""Requests to the API server at once, over all groups."""
ACTIONS: Final = 50
"""Of one reconcile. What is left waits for the next, which sees how these went and what has happened since."""
RESYNC: Final = 300.0

_log = logging.getLogger(__name__)


class Reconciler:
    def __init__(
        self,
        api: KubeApi,
        members: Members,
        store: Store,
        endpoints: str,
        places: Places,
        events: Events,
        metrics: Metrics,
    ) -> None:
        self._api = api
        self._members = members
        self._store = store
        self._endpoints = endpoints
        self._places = places
        self._events = events
        self._metrics = metrics
        self._turns = Turns(REQUESTS)
        self._equipment = Equipment(api, members, places)
        self._told: set[str] = set()
        """Pods (UIDs) whose workers this process has asked to leave."""
        self._reported: dict[GroupKey, float] = {}
        self._hashes: dict[GroupKey, tuple[tuple[str, int], dict[str, str]]] = {}
        """Of the templates of each role, with the UID and generation they are of."""

    async def reconcile(self, key: GroupKey) -> float | None:
        """Seconds after which to look again. Raises what went wrong; the next run starts from what is then."""
        try:
            with self._metrics.reconcile():
                return await self._reconcile(key)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            expected = isinstance(exc, (ApiError, RendezvousError, OSError, asyncio.TimeoutError))
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "%s/%s: %s; trying again",
                *key,
                exc or type(exc).__name__,
                exc_info=not expected,
            )
            raise

    async def _reconcile(self, key: GroupKey) -> float | None:
        group = self._store.groups.get(key)
        if group is None:
            if not self._store.pods(key):  # they may still say farewell; the last one's end brings us back
                await self._equipment.remove(key)
                self._reported.pop(key, None)
                self._hashes.pop(key, None)
            return None
        if group.deleting or group.spec is None:
            if group.spec is None:
                self._events.warn(group, "InvalidSpec", group.fault)
            return RESYNC
        if group.spec.spec.managed_by not in (None, MANAGER):
            return None
        await self._equipment.make(group, group.spec)
        now = time.time()
        observed = self._observe(group, group.spec)
        # As they are now: they go on changing while this waits for answers.
        records = dict(self._members.of(key))
        incarnations = {name: record.incarnation for name, record in records.items()}
        previous = status_from(group.status)
        planned = plan(group.spec, observed, incarnations, now, previous)
        await self._evict_orphans(group, records)
        await self._set_gates(group, records)
        await self._remind(group, observed)
        failures = {p.name: p.failures for p in observed}
        actions, left = planned.actions[:ACTIONS], planned.actions[ACTIONS:]
        try:
            await self._all(group, (self._apply(group, group.spec, a, failures, now) for a in actions))
        finally:  # also where a quota is used up, say
            wait = await self._report(group, group.spec, planned, observed, now)
        if planned.at_rest and planned.expires_at is not None and now >= planned.expires_at:
            await self._api.delete(paths.group(*key), uid=group.uid)
            return None
        if left:
            return 0.0
        # What is over already waits for a pod's end, which wakes us: to look again at once would be a busy loop.
        times = [t - now for t in (planned.wake_at, planned.expires_at) if t is not None and t > now]
        return min([RESYNC, *times] if wait is None else [RESYNC, wait, *times])

    def _observe(self, group: Group, spec: RPCGroup) -> list[ObservedPod]:
        hashes = self._template_hashes(group, spec)
        records = self._members.of(group.key)
        return [
            observe(pod, records.get(pod.name), hashes.get(pod.role, ""))
            for pod in self._store.pods(group.key).values()
        ]

    def _template_hashes(self, group: Group, spec: RPCGroup) -> dict[str, str]:
        version = group.uid, group.generation
        known = self._hashes.get(group.key)
        if known is None or known[0] != version:
            hashes = {role: render.template_hash(t) for role, (_, t) in spec.roles().items()}
            known = self._hashes[group.key] = version, hashes
        return known[1]

    async def _all(self, group: Group, jobs: Iterable[Awaitable[None]]) -> None:
        """All of them, a few at a time; raises the first failure once all have ended."""

        async def bounded(job: Awaitable[None]) -> None:
            async with self._turns.turn(group.key):
                await job

        results = await asyncio.gather(*(bounded(job) for job in jobs), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # -- members --------------------------------------------------------------------------------------------

    async def _evict_orphans(self, group: Group, records: Mapping[str, MemberRecord]) -> None:
        """A member whose pod is gone without a farewell is dead: no lease need run out for that."""
        pods = self._store.pods(group.key)
        for name, record in records.items():
            pod = pods.get(name)
            if not record.pod_uid or (pod is not None and pod.uid == record.pod_uid):
                continue
            if not await self._is_gone(group, name, record.pod_uid):
                continue
            await self._members.evict(group.key, name)
            self._events.warn(group, "MemberEvicted", f"{name}: its pod is gone")

    async def _is_gone(self, group: Group, name: str, uid: str) -> bool:
        """Asked of the API server: what is remembered here may lag behind etcd."""
        try:
            raw = await self._api.get(paths.pod(group.key[0], name))
        except ApiError as exc:
            if exc.status != 404:
                raise
            return True
        return bool(raw["metadata"]["uid"] != uid)

    async def _set_gates(self, group: Group, records: Mapping[str, MemberRecord]) -> None:
        jobs = []
        for pod in self._store.pods(group.key).values():
            record = records.get(pod.name)
            joined = (
                record is not None
                and is_of(record, pod)
                and record.state in (MemberState.READY, MemberState.DRAINING)
            )
            if joined != pod.joined and not pod.deleting and pod.phase in ("Pending", "Running"):
                jobs.append(self._set_gate(group, pod, joined))
        await self._all(group, jobs)

    async def _set_gate(self, group: Group, pod: Pod, joined: bool) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name, "uid": pod.uid},
            "status": {"conditions": [joined_condition(joined, rfc3339(time.time()))]},
        }
        try:
            raw = await self._api.apply(paths.pod(group.key[0], pod.name) + "/status", body)
        except ApiError as exc:
            if exc.status not in (404, 409):
                raise
        else:
            self._remember(group, raw)

    async def _remind(self, group: Group, observed: Iterable[ObservedPod]) -> None:
        """A request to leave may have been written on the pod by an operator that died before it told the worker."""
        for pod in observed:
            if pod.state is not PodState.DRAINING:
                continue
            uid = self._store.pods(group.key)[pod.name].uid
            if uid not in self._told:
                await self._tell(group, pod.name, uid, pod.drain_deadline, "asked to leave")

    async def _tell(self, group: Group, name: str, uid: str, deadline: float, reason: str) -> None:
        await self._members.drain(group.key, name, DrainRequest(deadline, reason))
        self._told.add(uid)

    # -- the plan's actions ---------------------------------------------------------------------------------

    async def _apply(
        self, group: Group, spec: RPCGroup, action: Action, failures: Mapping[str, int], now: float
    ) -> None:
        self._metrics.actions.labels(type(action).__name__.lower()).inc()
        match action:
            case Create():
                await self._create(group, spec, action, 0)
            case Restart(name):
                await self._restart(group, spec, name, failures[name])
            case Drain(name, deadline, reason):
                await self._drain(group, name, deadline, reason, now)
            case Evict(name):
                await self._evict(group, name)
            case Delete(name, grace):
                await self._delete(group, name, grace)

    async def _create(self, group: Group, spec: RPCGroup, create: Create, failures: int) -> None:
        rendezvous = render.Rendezvous(self._endpoints, self._places.has_users, self._places.has_ca)
        body = render.pod(spec, group.uid, create, rendezvous, failures)
        try:
            raw = await self._api.create(paths.pods(group.key[0]), body)
        except ApiError as exc:
            if exc.reason == "AlreadyExists":
                raw = await self._api.get(paths.pod(group.key[0], create.name))
                owners = raw["metadata"].get("ownerReferences") or []
                if not any(o["uid"] == group.uid for o in owners):
                    self._events.warn(
                        group, "NameTaken", f"pod {create.name} exists and is not of this group"
                    )
                    raise
            else:
                self._events.warn(group, "FailedCreate", f"pod {create.name}: {exc}")
                raise
        else:
            self._events.normal(group, "Created", f"pod {create.name}")
        self._remember(group, raw)

    async def _restart(self, group: Group, spec: RPCGroup, name: str, failures: int) -> None:
        """In place of the failed pod another one of its name, which knows how often that has happened."""
        pod = self._store.pods(group.key)[name]
        await self._api.delete(paths.pod(group.key[0], name), grace=0, uid=pod.uid)
        self._store.drop_pod(group.key, name, pod.uid)
        await self._create(group, spec, Create(name, pod.role, pod.index), failures)

    async def _drain(self, group: Group, name: str, deadline: float, reason: str, now: float) -> None:
        pod = self._store.pods(group.key)[name]
        raw = await self._api.merge(paths.pod(group.key[0], name), render.drain_mark(pod.uid, deadline))
        self._remember(group, raw)
        self._events.normal(group, "Draining", f"{name}: {reason}; it has {deadline - now:.0f} s")
        await self._tell(group, name, pod.uid, deadline, reason)

    async def _evict(self, group: Group, name: str) -> None:
        pod, record = self._store.pods(group.key).get(name), self._members.of(group.key).get(name)
        if record is not None and pod is not None and is_of(record, pod):
            await self._members.evict(group.key, name)

    async def _delete(self, group: Group, name: str, grace: float) -> None:
        pod = self._store.pods(group.key)[name]
        await self._api.delete(paths.pod(group.key[0], name), grace=grace, uid=pod.uid)
        self._store.put_pod(group.key, replace(pod, deleting=True))
        self._told.discard(pod.uid)
        self._events.normal(group, "Deleted", f"pod {name}")

    def _remember(self, group: Group, raw: render.Object) -> None:
        pod = Pod.of(raw)
        if pod is not None:
            self._store.put_pod(group.key, pod)

    # -- the status -----------------------------------------------------------------------------------------

    async def _report(
        self, group: Group, spec: RPCGroup, planned: Plan, observed: Iterable[ObservedPod], now: float
    ) -> float | None:
        """Write the status if it says something new; seconds to wait where the last one is too fresh."""
        updated = sum(p.role == DEFAULT_ROLE and not p.outdated for p in observed)
        status = status_to(planned.status, group.generation, render.selector(spec), updated)
        if status == group.status:
            return None
        since = now - self._reported.get(group.key, 0.0)
        if since < STATUS_SECONDS:
            return STATUS_SECONDS - since
        self._reported[group.key] = now
        body = {"metadata": {"uid": group.uid}, "status": status}
        raw = await self._api.merge(paths.group(*group.key) + "/status", body)
        self._store.put_group(Group.of(raw))
        return None
