"""The operator's process: its parts, made and ended in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import kopf
from kopf._cogs.structs.references import Insights  # what kopf has found is to be seen nowhere else
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient

from rpcgroup.contract import API_VERSION, PLURAL
from rpcgroup.errors import RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup_operator import handlers, liveness, paths
from rpcgroup_operator.api import ApiError, KubeApi
from rpcgroup_operator.events import Events
from rpcgroup_operator.installation import etcd_access, owner
from rpcgroup_operator.leader import Election
from rpcgroup_operator.members import GroupKey, Members
from rpcgroup_operator.metrics import Metrics
from rpcgroup_operator.places import Places
from rpcgroup_operator.pod_watch import PodWatch
from rpcgroup_operator.reconciler import Reconciler
from rpcgroup_operator.settings import Settings
from rpcgroup_operator.store import Store
from rpcgroup_operator.work_queue import WorkQueue

__all__ = ["run"]

AGAIN_SECONDS: Final = 2.0
REFUSED_SECONDS: Final = 5.0
"""After etcd has refused the operator: it will not relent at once."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


async def run(settings: Settings) -> None:
    """Until the process is told to stop. Raises `RuntimeError` where the lease was lost."""
    async with AsyncExitStack() as stack:
        await config.load_config()  # type: ignore[no-untyped-call]
        client = await stack.enter_async_context(ApiClient())
        api = KubeApi(client)
        store = Store()
        woken: list[WorkQueue] = []  # none while another operator leads

        def wake(key: GroupKey) -> None:
            """Of what is not watched nobody here knows whether it is there; etcd tells of all that meet in it."""
            for queue in woken:
                if settings.watches(key[0]):
                    queue.add(key)

        events = Events(api, settings.identity)
        metrics = Metrics()
        metrics.count_groups(lambda: len(store.groups))
        stack.enter_context(metrics.serve(settings.metrics_port))
        synced = asyncio.Event()
        pod_watches = [PodWatch(api, store, wake, n) for n in settings.watch_namespaces or ("",)]

        async def work() -> None:
            if await _patiently(lambda: _any_groups(api, settings)):  # of none kopf tells nothing
                await synced.wait()
            for watch in pod_watches:
                await watch.listed.wait()
            access = await _patiently(lambda: etcd_access(api, settings))
            me = await _patiently(lambda: owner(api, settings))
            etcd = EtcdClient(access.endpoints, access.credentials)
            stack.callback(etcd.close)
            places = Places(etcd, access, me)
            await _open(places)
            members = Members(etcd, wake)
            stack.callback(members.close)
            members.start()
            await members.listed.wait()
            reconciler = Reconciler(api, members, store, settings.rendezvous, places, events, metrics)
            queue = WorkQueue(reconciler.reconcile, settings.workers)
            woken.append(queue)
            metrics.leading.set(1)
            for key in {*store.groups, *places.marked}:  # also those that went while no operator was there
                wake(key)
            await queue.run()

        def told(key: GroupKey) -> None:
            synced.set()  # kopf tells nothing before it has indexed everything
            wake(key)

        registry = kopf.OperatorRegistry()
        handlers.register(registry, store, told)
        kopf.on.startup(registry=registry)(_configure)
        kopf.on.login(registry=registry)(_login)
        stopping = asyncio.Event()

        async def told_to_stop(**_: Any) -> None:
            stopping.set()  # kopf itself now waits 5 s for every task of this process

        kopf.on.cleanup(registry=registry)(told_to_stop)
        liveness.register(registry, woken)
        election = Election(api, settings.own_namespace(), settings.lease_name, settings.identity)
        leading = asyncio.create_task(election.lead(work) if settings.leader_election else work())
        tasks = [
            leading,
            asyncio.create_task(_watch(registry, settings)),
            asyncio.create_task(events.run()),
            asyncio.create_task(stopping.wait()),
            *(asyncio.create_task(watch.run()) for watch in pod_watches),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leading.cancel()
            await asyncio.wait(
                {leading}
            )  # first: kopf, when it is cancelled, cancels what gives the Lease back
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result
        if not leading.cancelled():
            raise RuntimeError("the lease was lost: ending, so that a fresh process takes over")


async def _any_groups(api: KubeApi, settings: Settings) -> bool:
    wheres = [paths.groups(name) for name in settings.watch_namespaces] or [paths.ALL_GROUPS]
    return any([(await api.get(f"{where}?limit=1"))["items"] for where in wheres])


async def _patiently(request: Callable[[], Awaitable[_T]]) -> _T:
    """Until the API server answers. Raises `ApiError` where it refuses."""
    while True:
        try:
            return await request()
        except (ApiError, OSError, asyncio.TimeoutError) as exc:
            if isinstance(exc, ApiError) and exc.status < 500 and exc.status != 429:
                raise
            _log.warning("the API server does not answer: %s; trying on", exc or type(exc).__name__)
            await asyncio.sleep(AGAIN_SECONDS)


async def _open(places: Places) -> None:
    """Until etcd answers."""
    while True:
        try:
            return await places.open(0)
        except RendezvousUnavailableError:
            pass  # the client logs outages
        except RendezvousError as exc:
            _log.error("etcd lets this operator do nothing; trying on: %s", exc)
            await asyncio.sleep(REFUSED_SECONDS)


async def _watch(registry: kopf.OperatorRegistry, settings: Settings) -> None:
    insights = Insights()
    operator = kopf.operator(
        registry=registry,
        insights=insights,
        standalone=True,
        identity=settings.identity,  # type: ignore[arg-type]  # else of the user's name, and a container's has none
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.liveness_port}/healthz",
    )
    watching, looking = asyncio.create_task(operator), asyncio.create_task(_require_resource(insights))
    try:
        await asyncio.wait({watching, looking}, return_when=asyncio.FIRST_COMPLETED)
        if looking.done():
            looking.result()
        await watching
    finally:
        watching.cancel()
        looking.cancel()
        await asyncio.gather(watching, looking, return_exceptions=True)


async def _require_resource(insights: Insights) -> None:
    """Raises `RuntimeError` where the API server has not told kopf of the resource.

    kopf asks once. An API server that has just started answers before it has found its CRDs, and kopf would then
    watch nothing, for ever.
    """
    await insights.ready_resources.wait()
    if not any(resource.plural == PLURAL for resource in insights.watched_resources):
        raise RuntimeError(
            f"the API server does not serve {PLURAL}.{API_VERSION}: its CRD is not installed, or it has not found it "
            "yet; ending, so that a fresh process looks again"
        )


def _configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.enabled = False  # the reconciler writes what people should read
    settings.persistence.diffbase_storage = handlers.NothingKept()
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10


def _login(**known: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**known) or kopf.login_with_kubeconfig(**known)
