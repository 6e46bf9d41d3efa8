"""Real workers that call each other all the time, while what Kubernetes has for them is away, and while they die."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from kubernetes import client

from rpcgroup.contract import DEFAULT_LEASE_TTL
from tests.cluster.bed.installation import NAMESPACE
from tests.cluster.bed.real_cluster import RealCluster
from tests.cluster.busy_group import BusyGroup, of_kind, processes

pytestmark = pytest.mark.timeout(580)

API_SECONDS: Final = 30.0
ETCD_SECONDS: Final = 3.0 * DEFAULT_LEASE_TTL
WORKERS: Final = 4
ROUNDS: Final = 4
"""In each all workers but one die, one after another."""
SEEN_SECONDS: Final = 30.0
OPERATOR: Final = "deployment/rpcgroup-operator"
ETCD: Final = "rpcgroup-etcd-0"

Until = Callable[..., None]


@pytest.fixture(scope="module")
def busy(operator_pods: RealCluster) -> Iterator[BusyGroup]:
    """It serves all tests of this module: each start takes the time of four imports of torch."""
    access, namespace = operator_pods.access, f"busy-{secrets.token_hex(4)}"
    access.kubectl("create", "namespace", namespace)
    access.kubectl(
        "wait", "--for=create", "--timeout=30s", f"--namespace={namespace}", "serviceaccount/default"
    )
    group = BusyGroup(access, namespace, WORKERS)
    group.start()
    yield group
    access.kubectl("delete", "namespace", namespace, "--wait=false")


def test_nobody_notices_that_the_api_server_is_away(busy: BusyGroup, operator_pods: RealCluster) -> None:
    with unnoticed(busy):
        with operator_pods.without_api_server():
            threading.Event().wait(API_SECONDS)
        operator_pods.access.kubectl(
            "rollout", "status", f"--namespace={NAMESPACE}", "--timeout=55s", OPERATOR
        )


def test_nobody_notices_that_etcd_is_away(busy: BusyGroup, operator_pods: RealCluster) -> None:
    """Frozen, so that its connections stay; all leases are over when it comes to."""
    etcd = operator_pods.access.get("pod", ETCD, f"--namespace={NAMESPACE}")["metadata"]["uid"]
    with unnoticed(busy):
        for pid in processes(etcd):
            os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(ETCD_SECONDS)
        for pid in processes(etcd):
            os.kill(pid, signal.SIGCONT)


def test_a_death_is_seen_by_all(busy: BusyGroup) -> None:
    show("killed", deaths(busy, busy.kill))


def test_a_forced_deletion_is_seen_by_all(busy: BusyGroup, operator_pods: RealCluster) -> None:
    with operator_pods.access.client() as api:

        def delete(name: str) -> float:
            began = time.time()
            client.CoreV1Api(api).delete_namespaced_pod(name, busy.namespace, grace_period_seconds=0)
            return began

        show("deleted by force", deaths(busy, delete))


def test_calls_go_on_without_an_operator_and_the_group_can_be_deleted(
    busy: BusyGroup, operator_pods: RealCluster, until: Until
) -> None:
    here = f"--namespace={NAMESPACE}"
    with unnoticed(busy):
        operator_pods.access.kubectl("scale", here, OPERATOR, "--replicas=0")
        label = "--selector=app.kubernetes.io/component=operator"
        until(lambda: not operator_pods.access.get("pods", here, label)["items"])
        busy.wait_for_calls()
    busy.kubectl("delete", "rpcgroup/busy")
    until(lambda: not busy.pods())
    operator_pods.access.kubectl("scale", here, OPERATOR, "--replicas=2")
    operator_pods.access.kubectl("rollout", "status", here, "--timeout=55s", OPERATOR)


@contextlib.contextmanager
def unnoticed(busy: BusyGroup) -> Iterator[None]:
    """Nobody restarts and no call fails during the block, and soon after it; everybody calls everybody."""
    busy.settle()
    lives, began = busy.lives(), time.time()
    yield
    ended = time.time()
    busy.wait_for_calls()
    busy.settle()
    assert busy.lives() == lives
    for name in lives:
        seen = [line for line in busy.seen(name) if line["at"] > began]
        assert of_kind(seen, "failed", "left", "died") == []
        during = [line["to"] for line in of_kind(seen, "calls") if line["at"] < ended]
        made = {peer: during[-1][peer] - during[0][peer] for peer in lives if peer != name}
        print(f"{name} in {ended - began:.0f} s: {made}")
        assert all(made.values())


def deaths(busy: BusyGroup, end: Callable[[str], float]) -> list[float]:
    """Of each worker that `end` has ended: the seconds until the last of the others had lost it."""
    took = []
    for _ in range(ROUNDS):
        busy.settle()
        incarnations = busy.incarnations()
        names = random.sample(sorted(incarnations), len(incarnations))
        while len(names) > 1:
            victim = names.pop()
            began = end(victim)
            took.append(busy.lost(victim, incarnations[victim], names, SEEN_SECONDS) - began)
    return took


def show(what: str, took: list[float]) -> None:
    print(
        f"{len(took)} {what}: everybody knew after p50 {statistics.median(took):.2f} s, max {max(took):.2f} s"
    )
