"""One group brought nearer to what is wanted: observe, plan, apply, report.

Level-triggered: every run sees the whole, and what a run could not do the next one does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping
from typing import Final

from rpcgroup.contract import DEFAULT_ROLE
from rpcgroup.control.lifecycle import WANTED, PodState
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.plan import Plan, plan
from rpcgroup.control.pod import ObservedPod
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi
from rpcgroup_operator.apply import Apply, Work
from rpcgroup_operator.equipment import Equipment
from rpcgroup_operator.events import Events
from rpcgroup_operator.members import GroupKey, Members
from rpcgroup_operator.metrics import Metrics
from rpcgroup_operator.places import Places
from rpcgroup_operator.pods import Pod, is_of, joined_condition, observe
from rpcgroup_operator.reporter import Reporter
from rpcgroup_operator.status import rfc3339, status_from, status_to
from rpcgroup_operator.store import Group, Store
from rpcgroup_operator.turns import Turns

__all__ = ["MANAGER", "Reconciler"]

MANAGER: Final = "rpcgroup.dev/operator"
"""`spec.managedBy` of the groups that this operator looks after; also those that do not say."""
REQUESTS: Final = 16
"""Requests to the API server at once, over all groups."""
ACTIONS: Final = 250
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
        self._apply = Apply(api, members, store, events, metrics)
        self._turns = Turns(REQUESTS)
        self._equipment = Equipment(api, members, places)
        self._reporter = Reporter(api, store)
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
                self._reporter.forget(key)
                self._apply.forget(key)
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
        for name in (p.name for p in observed if p.state is PodState.DRAINING):
            await self._apply.remind(group, self._store.pods(key)[name])
        work = Work(group, group.spec, self._rendezvous(), {p.name: p.failures for p in observed}, now)
        actions, left = planned.actions[:ACTIONS], planned.actions[ACTIONS:]
        try:
            await self._all(group, (self._apply.apply(work, action) for action in actions))
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

    def _rendezvous(self) -> render.Rendezvous:
        return render.Rendezvous(self._endpoints, self._places.has_users, self._places.has_ca)

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
            self._store.put_raw_pod(raw)

    # -- the status -----------------------------------------------------------------------------------------

    async def _report(
        self, group: Group, spec: RPCGroup, planned: Plan, observed: Iterable[ObservedPod], now: float
    ) -> float | None:
        """Seconds after which there is more to say."""
        updated = sum(p.role == DEFAULT_ROLE and p.state in WANTED and not p.outdated for p in observed)
        status = status_to(planned.status, group.generation, render.selector(spec), updated)
        return await self._reporter.report(group, status, now)
