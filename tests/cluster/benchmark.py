"""How fast the operator makes pods, beside a bare loop of creates: `python -m tests.cluster.benchmark`.

Both in one run on one control plane with simulated nodes. The loop is what the API server gives to 16 connections
that do nothing else: once for the same pods as the operator makes, so that the ratio is the operator's own cost,
and once for the least that is a pod.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient

from rpcgroup import contract
from rpcgroup.control.plan import Create
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup_operator import paths, render
from rpcgroup_operator.api import ApiError, KubeApi
from rpcgroup_operator.render import Rendezvous
from rpcgroup_operator.store import Group
from tests.cluster.bed import programs
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program, answers, free_port
from tests.cluster.bed.simulated_nodes import SimulatedNodes

CONNECTIONS = 16
PATIENCE = 600.0
POLL = 0.2
"""Seconds between two looks at how many pods there are."""
CRD = Path(__file__).parents[2] / "manifests" / "crd.yaml"
Pod = dict[str, Any]
TEMPLATE = {"spec": {"containers": [{"name": "main", "image": "none"}]}}


async def main(control_plane: ControlPlane, operator: Program, large: int, groups: int, each: int) -> None:
    async with connected(control_plane.access) as api:
        least = await rate(
            "a bare loop, least pods",
            large,
            lambda: create_pods(api, "least", large, least_pod),
            api,
            "least",
        )
        same = await same_pods(api)
        bare = await rate("a bare loop", large, lambda: create_pods(api, "bare", large, same), api, "bare")
        one = await rate("one group", large, lambda: create_groups(api, "one", 1, large), api, "one")
        print(f"   {one / bare:.2f}x the bare loop (bar: 0.7x), {one / least:.2f}x that of least pods")
        many = groups * each
        spread = await rate(
            f"{groups} groups", many, lambda: create_groups(api, "many", groups, each), api, "many", keep=True
        )
        print(f"   {spread / bare:.2f}x the bare loop (bar: 0.6x), {spread / least:.2f}x that of least pods")
        print(f"operator: {resident(operator):.0f} MB resident with {many} pods (bar: 200 MB)")
        await until(lambda: has_pods(api, "many", 0, "status.phase!=Running"))
        delays = [await first_pod(api, "first", number) for number in range(40)]
        delays.sort()
        print(
            f"spec -> first pod: p50 {statistics.median(delays):.3f} s (bar: 0.3 s), "
            f"p99 {delays[int(len(delays) * 0.99)]:.3f} s (bar: 1.5 s)"
        )


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[KubeApi]:
    await config.load_kube_config(config_file=str(access.kubeconfig))  # type: ignore[no-untyped-call]
    async with ApiClient() as client:
        yield KubeApi(client)


async def rate(
    what: str,
    count: int,
    begin: Callable[[], Awaitable[None]],
    api: KubeApi,
    namespace: str,
    keep: bool = False,
) -> float:
    """Pods a second, from the first request until all are there."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    await api.create("/api/v1/namespaces", body)
    await until(lambda: exists(api, f"/api/v1/namespaces/{namespace}/serviceaccounts/default"))
    began = time.monotonic()
    await begin()
    await until(lambda: has_pods(api, namespace, count))
    seconds = time.monotonic() - began
    print(f"{what}: {count} pods in {seconds:.1f} s, {count / seconds:.0f}/s", flush=True)
    if not keep:
        await api.delete(f"/api/v1/namespaces/{namespace}")
        await until(lambda: has_pods(api, namespace, 0))
    return count / seconds


async def create_pods(api: KubeApi, namespace: str, count: int, pod: Callable[[str, str], Pod]) -> None:
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            await api.create(paths.pods(namespace), pod(namespace, f"pod-{number}"))

    await together(one_after_the_other() for _ in range(CONNECTIONS))


def least_pod(namespace: str, name: str) -> Pod:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, **TEMPLATE}


async def same_pods(api: KubeApi) -> Callable[[str, str], Pod]:
    """Pods as the operator makes them, of a group that is not its business; their label hides them from it."""
    await create_group(api, "default", "nobodys", 0, managedBy="rpcgroup.dev/nobody")
    raw = await api.get(f"{paths.groups('default')}/nobodys")
    spec, uid = Group.of(raw).spec, raw["metadata"]["uid"]
    assert spec is not None

    def pod(namespace: str, name: str) -> Pod:
        body = render.pod(spec, uid, Create(name, "worker", 0), Rendezvous("127.0.0.1:2379"))
        labels = body["metadata"]["labels"]
        labels["rpcgroup.dev/bench"] = labels.pop(contract.LABEL_GROUP)
        body["metadata"]["namespace"] = namespace
        del body["metadata"]["ownerReferences"]  # an owner elsewhere is none
        return body

    return pod


async def create_groups(api: KubeApi, namespace: str, count: int, replicas: int) -> None:
    await together(create_group(api, namespace, f"g{number}", replicas) for number in range(count))


async def create_group(api: KubeApi, namespace: str, name: str, replicas: int, **fields: Any) -> None:
    body = {
        "apiVersion": contract.API_VERSION,
        "kind": contract.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "template": TEMPLATE, **fields},
    }
    await api.create(paths.groups(namespace), body)


async def first_pod(api: KubeApi, name: str, number: int) -> float:
    """Seconds from a new group to its first pod."""
    await create_group(api, "default", f"{name}-{number}", 1)
    began = time.monotonic()
    await until(lambda: exists(api, paths.pod("default", f"{name}-{number}-worker-0")), pause=0.005)
    return time.monotonic() - began


async def has_pods(api: KubeApi, namespace: str, count: int, field_selector: str = "") -> bool:
    """Counted by the API server: one object and how many remain, which it does not tell of a selection."""
    query = {"fieldSelector": field_selector} if field_selector else {"limit": "1"}
    listed = await api.get(f"{paths.pods(namespace)}?{urlencode(query)}")
    items: list[Any] = listed["items"]
    return len(items) + int(listed["metadata"].get("remainingItemCount", 0)) == count


async def exists(api: KubeApi, path: str) -> bool:
    try:
        await api.get(path)
    except ApiError as exc:
        if exc.status != 404:
            raise
        return False
    return True


async def until(condition: Callable[[], Awaitable[bool]], pause: float = POLL) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came true")
        await asyncio.sleep(pause)


async def together(jobs: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*jobs)


def resident(program: Program) -> float:
    """MB."""
    pages = int(Path(f"/proc/{program.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def run(large: int, groups: int, each: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = stack.enter_context(ControlPlane(folder / "control-plane", programs.built()))
        stack.enter_context(SimulatedNodes(plane, 10))
        etcd = stack.enter_context(EtcdServer(folder / "etcd"))
        plane.access.kubectl("apply", "--server-side", "--filename", str(CRD))
        plane.access.kubectl("wait", "--for=condition=Established", "crd/rpcgroups.rpcgroup.dev")
        health = free_port()
        operator = Program(
            "operator",
            [
                *(sys.executable, "-m", "rpcgroup_operator", "--etcd", etcd.endpoint),
                *("--liveness-port", str(health), "--metrics-port", str(free_port())),
                *("--lease-namespace", "default", "--log-level", "warning"),
            ],
            folder / "operator.log",
            lambda: answers(f"http://127.0.0.1:{health}/healthz"),
            env={"KUBECONFIG": str(plane.access.kubeconfig)},
        )
        operator.start()
        stack.callback(operator.stop)
        asyncio.run(main(plane, operator, large, groups, each))


if __name__ == "__main__":
    large, groups, each = (int(n) for n in sys.argv[1:]) if sys.argv[1:] else (1000, 100, 50)
    print(json.dumps({"pods of one group": large, "groups": groups, "pods of each": each}))
    run(large, groups, each)
