"""While no operator runs, everything can be deleted; the next one clears away what is left elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rpcgroup import contract
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.etcd.client import EtcdClient
from rpcgroup.membership.etcd.messages import RANGE, RangeRequest, prefix_end
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.random_walk import Group, started_operator
from tests.cluster.simulated_workers import SimulatedWorkers

pytestmark = pytest.mark.timeout(280)

Until = Callable[..., None]


@pytest.fixture
def operator(
    simulated_nodes: SimulatedNodes, control_plane: ControlPlane, etcd: EtcdServer, tmp_path: Path
) -> Iterator[Program]:
    with started_operator(control_plane, etcd, tmp_path) as program:
        yield program


def test_a_group_and_its_namespace_go_without_an_operator(
    group: Group,
    workers: SimulatedWorkers,
    operator: Program,
    access: Access,
    namespace: str,
    etcd: EtcdServer,
    until: Until,
) -> None:
    group.apply()
    group.settle()
    operator.kill()
    group.delete()
    until(lambda: not group.pods())
    access.kubectl("delete", "namespace", namespace, "--timeout=50s")
    operator.start()
    prefix = contract.group_prefix(namespace, "g").encode()
    with closing(EtcdClient([etcd.endpoint])) as client:
        until(lambda: client.call(RANGE, RangeRequest(prefix, prefix_end(prefix))).kvs == [])
    access.kubectl("create", "namespace", namespace)  # for the fixture to delete


def test_a_namespace_with_a_group_in_it_goes_without_an_operator(
    group: Group, workers: SimulatedWorkers, operator: Program, access: Access, namespace: str
) -> None:
    group.apply()
    group.settle()
    operator.kill()
    access.kubectl("delete", "namespace", namespace, "--timeout=50s")
    access.kubectl("create", "namespace", namespace)  # for the fixture to delete
