"""Workers for pods that kwok only pretends to run: each really joins the group in etcd and leaves when asked.

What a worker does in its process a thread does here, with the project's own rendezvous; the pod's end, which a
kubelet would report, is written into its status.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from kubernetes import client

from rpcgroup import contract
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest, GroupView, RecordEvent, Rendezvous
from rpcgroup.membership.url import open_rendezvous

__all__ = ["SimulatedWorkers"]

LOOK_SECONDS: Final = 0.05
JOIN_SECONDS: Final = 20.0
THREADS: Final = 16


@dataclass
class Worker:
    """Of one pod, by its UID. Also the listener of its seat."""

    namespace: str
    name: str
    uid: str
    pool: ThreadPoolExecutor
    api: client.CoreV1Api
    seat: Rendezvous
    joined: bool = False
    asked: bool = False
    left: threading.Event = field(default_factory=threading.Event)

    def join(self) -> None:
        record = MemberRecord(
            name=self.name,
            state=MemberState.READY,
            pod_name=self.name,
            pod_uid=self.uid,
            address="tcp://none:1",
        )
        try:
            self.seat.join(record, admit=lambda mine, earlier: None, listener=self, timeout=JOIN_SECONDS)
            self.joined = True
        except RendezvousError:
            pass  # its pod went before it could join

    def on_view(self, view: GroupView, events: Sequence[RecordEvent]) -> None:
        pass

    def on_drain(self, request: DrainRequest) -> None:
        self.asked = True
        self.pool.submit(self._leave)

    def _leave(self) -> None:
        self.seat.leave(JOIN_SECONDS)
        self.left.set()
        try:
            body = {"metadata": {"uid": self.uid}, "status": {"phase": "Succeeded"}}
            self.api.patch_namespaced_pod_status(self.name, self.namespace, body)
        except client.ApiException:
            pass  # it was deleted meanwhile

    def close(self) -> None:
        self.seat.close()


class SimulatedWorkers:
    """For all pods of groups in one namespace; a context manager."""

    def __init__(self, api: client.ApiClient, namespace: str, etcd: str) -> None:
        self._api = client.CoreV1Api(api)
        self._namespace = namespace
        self._etcd = etcd
        self._workers: dict[str, Worker] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulated-workers")
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="simulated-worker")
        self.not_deregistered: list[str] = []
        """Pods that went though their worker had been asked to leave and had not left."""
        self.drained: list[str] = []
        """UIDs of pods that went after their worker had left the group."""
        self.gone: list[str] = []
        """UIDs of pods that have gone, in order."""

    def __enter__(self) -> SimulatedWorkers:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        for worker in self._workers.values():
            worker.close()
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            found = self._api.list_namespaced_pod(self._namespace, label_selector=contract.LABEL_GROUP)
            pods: list[Any] = found.items  # in the library's types everything may be missing
            there = {pod.metadata.uid for pod in pods}
            for pod in pods:
                if pod.metadata.uid not in self._workers and pod.status.phase == "Running":
                    self._start(pod)
            for uid in self._workers.keys() - there:
                self._end(self._workers.pop(uid))

    def _start(self, pod: Any) -> None:
        group = pod.metadata.labels[contract.LABEL_GROUP]
        seat = open_rendezvous(f"etcd://{self._etcd}/{self._namespace}/{group}")
        worker = Worker(self._namespace, pod.metadata.name, pod.metadata.uid, self._pool, self._api, seat)
        self._workers[worker.uid] = worker
        self._pool.submit(worker.join)

    def _end(self, worker: Worker) -> None:
        """Its pod is gone, and so would be its process."""
        if worker.left.is_set():
            self.drained.append(worker.uid)
        elif worker.asked:
            self.not_deregistered.append(worker.name)
        self.gone.append(worker.uid)
        worker.close()
