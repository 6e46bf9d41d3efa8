"""The local driver: observe, plan, apply, wait; again after every change.

One thread, the main one, owns the pods and all else here. It is woken by the end of a process, a change in
etcd (the observer's thread), a command (the control socket) or a signal, and looks at the whole each time.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from functools import partial
from typing import Any, Final

from rpcgroup.contract import ANNOTATION_DELETION_COST
from rpcgroup.control.compat import compat_environment
from rpcgroup.control.device_maps import device_maps_environment
from rpcgroup.control.lifecycle import WANTED, PodState
from rpcgroup.control.model import RPCGroup
from rpcgroup.control.plan import Action, Create, Delete, Drain, Evict, Plan, Restart, plan
from rpcgroup.control.status import Outcome
from rpcgroup.errors import EtcdServerError, RendezvousError, RendezvousUnavailableError
from rpcgroup.local.certificates import LocalCertificates
from rpcgroup.local.control import ControlServer
from rpcgroup.local.directory import GroupDirectory
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.local.observer import Observer, Sighting
from rpcgroup.local.pod import LocalPod, deletion_cost
from rpcgroup.local.report import Reporter
from rpcgroup.local.snapshot import snapshot_of
from rpcgroup.local.template import Identity, command_of
from rpcgroup.local.wakeup import Wakeup
from rpcgroup.membership.rendezvous import DrainRequest, Rendezvous

__all__ = ["LocalDriver"]

RESYNC: Final = 1.0
"""Seconds after which the driver looks again though nothing woke it."""

ETCD_BACKOFF: Final = 5.0
"""Seconds between two attempts to start an etcd that has ended."""

EVENTS_KEPT: Final = 100


class LocalDriver:
    """Runs one group until its job has ended or it is told to stop.

    `etcd` runs and is started again when it ends; `rendezvous` is the driver's own seat there, which does not
    join. The caller opens and closes what it passes.
    """

    def __init__(
        self,
        group: RPCGroup,
        directory: GroupDirectory,
        etcd: EtcdServer,
        rendezvous: Rendezvous,
        reporter: Reporter,
        wakeup: Wakeup,
        facts: dict[str, Any],
    ) -> None:
        self.group = group
        self.pods: dict[str, LocalPod] = {}
        self.stopped_by: signal.Signals | None = None
        self._directory = directory
        self._etcd = etcd
        self._url = f"etcd://{etcd.endpoint}/{group.metadata.namespace}/{group.metadata.name}"
        self._rendezvous = rendezvous
        self._certificates: LocalCertificates | None = None
        if group.spec.security.tls:
            metadata = group.metadata
            self._certificates = LocalCertificates(directory.certificates, metadata.namespace, metadata.name)
        self._reporter = reporter
        self._wakeup = wakeup
        self._facts = facts
        self._events: deque[tuple[float, str, str]] = deque(maxlen=EVENTS_KEPT)
        self._sighting = Sighting()
        self._evicted: dict[str, int] = {}
        self._start_etcd_at = 0.0
        self._status = plan(group, [], {}, time.time()).status

    def run(self, control: ControlServer, signals: deque[signal.Signals]) -> int:
        """The exit code: 0 when the group is complete, else that of a worker, or 128 + the signal that came.

        The first of `signals` drains, the second kills. No process of the group runs afterwards.
        """
        observer = Observer(self._rendezvous, self._wakeup.set)
        try:
            while True:
                now = time.time()
                while signals:
                    self._stop(signals.popleft())
                self._look_after_etcd(now)
                self._look_after_certificates(now)
                self._observe(observer.last, now)
                planned = self._plan(now)
                changed = [self._apply(action, now) for action in planned.actions]
                self._forget_named_victims()
                self._reporter.snapshot(self.snapshot())
                if planned.at_rest and (planned.outcome or self.stopped_by):
                    return self._exit_code()
                if not any(changed):
                    self._wait(control, self._next_look(planned))
        finally:
            observer.close()
            for pod in self.pods.values():
                pod.close()

    @property
    def ending(self) -> bool:
        """The job is over, or stopped; what is left is to see everybody off."""
        return self._status.outcome is not None or self.stopped_by is not None

    def event(self, subject: str, text: str) -> None:
        self._events.append((time.time(), subject, text))
        self._reporter.event(subject, text)

    def snapshot(self) -> dict[str, Any]:
        pods = self.pods.values()
        return snapshot_of(self.group, pods, self._status, self._sighting, self._events, self._facts)

    def _stop(self, number: signal.Signals) -> None:
        name = self.group.metadata.name
        if self.stopped_by is None:
            self.stopped_by = number
            self.group = self.group.suspended()
            self.event(name, f"{number.name}: draining all workers; once more kills them")
            return
        self.event(name, f"{number.name} again: killing all workers")
        for pod in self.pods.values():
            pod.kill("killed")

    def _exit_code(self) -> int:
        if self._status.outcome is Outcome.COMPLETE:
            return 0
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        statuses = (p.exit_status for p in self.pods.values() if p.state is PodState.FAILED)
        status = next((s for s in statuses if s), 1)
        return status if status > 0 else 128 - status

    def _look_after_etcd(self, now: float) -> None:
        """A crash of etcd costs the workers nothing, as long as it comes back with what it had stored."""
        if self._etcd.pid is not None or now < self._start_etcd_at:
            return
        self.event("etcd", "has ended; starting it again")
        self._start_etcd_at = now + ETCD_BACKOFF
        try:
            self._etcd.start()
        except EtcdServerError as exc:
            self.event("etcd", str(exc))

    def _look_after_certificates(self, now: float) -> None:
        if self._certificates is None:
            return
        try:
            if self._certificates.renew(now):
                self.event(self.group.metadata.name, "new certificates")
        except OSError as exc:
            self.event(self.group.metadata.name, f"cannot write certificates: {exc}; trying again")

    def _observe(self, sighting: Sighting, now: float) -> None:
        if (sighting.away_since is None) != (self._sighting.away_since is None):
            there = sighting.away_since is None
            self.event("etcd", "answers again" if there else "does not answer; the workers go on without it")
        self._sighting = sighting
        for pod in self.pods.values():
            pod.observe(sighting.members.get(pod.name), now)
        self.pods = {name: pod for name, pod in self.pods.items() if pod.state is not PodState.GONE}

    def _plan(self, now: float) -> Plan:
        members = {
            name: record.incarnation
            for name, record in self._sighting.members.items()
            if record.incarnation > self._evicted.get(name, 0)
        }
        observed = [pod.observed() for pod in self.pods.values()]
        planned = plan(self.group, observed, members, now, self._status)
        if planned.outcome is not self._status.outcome:
            conditions = (c for c in planned.status.conditions if c.type == planned.outcome)
            self.event(self.group.metadata.name, next(f"{c.type}: {c.message}" for c in conditions))
        self._status = planned.status
        return planned

    def _apply(self, action: Action, now: float) -> bool:
        """Whether the state of a pod is another now."""
        match action:
            case Create(name, role, index):
                self.pods[name] = self._new_pod(name, role, index, now)
                self._start(self.pods[name], now)
            case Restart(name):
                if self._sighting.at <= self.pods[name].observed().failed_at:
                    return False  # its record may be there unseen, and would pass for the next one
                self.pods[name].restart()
                self._start(self.pods[name], now)
            case Drain(name, deadline, reason):
                return self._drain(self.pods[name], deadline, now, reason)
            case Evict(name):
                self._evict(name)
                return False
            case Delete(name, grace):
                self.pods[name].delete(grace, now)
        return True

    def _new_pod(self, name: str, role: str, index: int, now: float) -> LocalPod:
        template = self.group.roles()[role][1]
        return LocalPod(
            name,
            role,
            index,
            log=self._directory.logs / f"{name}.log",
            now=now,
            on_line=partial(self._reporter.line, name),
            on_event=partial(self.event, name),
            deletion_cost=deletion_cost(template.metadata.annotations, ANNOTATION_DELETION_COST),
        )

    def _start(self, pod: LocalPod, now: float) -> None:
        metadata = self.group.metadata
        identity = Identity(
            metadata.namespace,
            metadata.name,
            pod.name,
            pod.role,
            pod.index,
            pod.uid,
            self._url,
            self._directory.secret,
            self._certificates.env() if self._certificates else {},
            compat_environment(self.group, pod.role, pod.index),
            device_maps_environment(self.group, pod.role),
        )
        template = self.group.roles()[pod.role][1]
        pod.start(command_of(template.spec.main, identity, os.environ), now)

    def _drain(self, pod: LocalPod, deadline: float, now: float, reason: str) -> bool:
        try:
            if self._sighting.away_since is not None:
                raise RendezvousUnavailableError("etcd does not answer")
            self._rendezvous.request_drain(pod.name, DrainRequest(deadline, reason))
        except RendezvousUnavailableError:
            pod.terminate()  # which a worker takes for the same request
        except RendezvousError as exc:
            self.event(pod.name, f"cannot be asked to leave: {exc}")
            return False
        pod.drained(deadline, now, reason)
        return True

    def _evict(self, name: str) -> None:
        if self._sighting.away_since is not None:
            return  # planned again until etcd is back
        seen = self._sighting.members[name].incarnation
        try:
            record = self._rendezvous.view().members.get(name)  # it may have left since it was seen
            if record is not None and record.incarnation == seen:
                self._rendezvous.evict(name)
                self.event(name, "taken out of the group")
            self._evicted[name] = seen
        except RendezvousError as exc:
            self.event(name, f"cannot be taken out of the group: {exc}")

    def _forget_named_victims(self) -> None:
        """A name is for the pod that has it now, not for the next one."""
        spec = self.group.spec
        named = spec.scale_strategy.workers_to_delete
        left = [name for name in named if name in self.pods and self.pods[name].state in WANTED]
        if left != named:
            self.group = self.group.scaled(spec.replicas, left)

    def _next_look(self, planned: Plan) -> float:
        """Unix time."""
        kills = [pod.kill_at for pod in self.pods.values()]
        return min(t for t in [time.time() + RESYNC, planned.wake_at, *kills] if t is not None)

    def _wait(self, control: ControlServer, until: float) -> None:
        """Pass on what workers write until something else happens or it is time."""
        while True:
            processes = [pod.process for pod in self.pods.values() if pod.process]
            writers = {p.output: p for p in processes if p.output is not None}
            poller = select.poll()
            for descriptor in [self._wakeup.fileno(), control.fileno(), *writers]:
                poller.register(descriptor, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(max(0.0, until - time.time()) * 1000)}
            for descriptor in ready & writers.keys():
                writers[descriptor].pump()
            if control.fileno() in ready:
                control.serve_one()
            if not ready or not ready <= writers.keys():
                self._wakeup.clear()
                return
