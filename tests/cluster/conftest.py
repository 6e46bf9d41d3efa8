"""A real control plane for every test here, simulated nodes for those that ask, a namespace of its own for each."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, TypeVar

import pluggy
import pytest

from rpcgroup.local.etcd_server import EtcdServer
from tests.cluster.bed import programs as bed_programs
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.installation import installed
from tests.cluster.bed.process import Program
from tests.cluster.bed.real_cluster import RealCluster
from tests.cluster.bed.real_node import RequirementError
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.random_walk import Group, started_operator
from tests.cluster.simulated_workers import SimulatedWorkers

T = TypeVar("T")
REAL_CLUSTER: Final = pytest.StashKey[RealCluster]()
UNTIL_SECONDS: Final = 60.0
"""The garbage collector learns of a new kind within 30 s; everything else takes less."""
POLL_SECONDS: Final = 0.15
"""Most conditions run kubectl, which takes about as much of a core."""


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the built programs."""
    try:
        return bed_programs.built()
    except bed_programs.BuildError as exc:
        pytest.fail(str(exc), pytrace=False)


@pytest.fixture(scope="session")
def control_plane(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Kubernetes without nodes, shared by all tests: pods stay Pending, a test writes their status by hand.

    Stop nothing of it. A test that does takes a `ControlPlane(tmp_path, programs)` of its own.
    """
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), programs) as plane:
        yield plane


@pytest.fixture(scope="module")
def simulated_nodes(control_plane: ControlPlane) -> Iterator[SimulatedNodes]:
    """Three nodes on the same control plane that run pods in appearance.

    Of a module, so that the pods of other modules have no node: keep tests of both sorts apart.
    """
    with SimulatedNodes(control_plane) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def real_cluster(
    programs: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RealCluster]:
    """Another cluster, whose one node runs real pods. Needs root."""
    try:
        with RealCluster(tmp_path_factory.mktemp("real-cluster"), programs) as cluster:
            request.config.stash[REAL_CLUSTER] = cluster
            yield cluster
    except RequirementError as exc:
        pytest.fail(str(exc), pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """Beside a failure stands how the cluster was: nobody can look any more when it is read."""
    report = (yield).get_result()
    cluster = item.config.stash.get(REAL_CLUSTER, None)
    if report.failed and cluster and "real_cluster" in item.fixturenames:
        report.sections.append(("The real cluster", cluster.describe()))


@pytest.fixture(scope="session")
def operator_pods(real_cluster: RealCluster, programs: Path) -> Iterator[RealCluster]:
    """The same cluster with the chart installed: the operator and etcd as pods."""
    with installed(real_cluster, programs):
        yield real_cluster


@pytest.fixture
def access(control_plane: ControlPlane) -> Access:
    return control_plane.access


@pytest.fixture
def namespace(access: Access) -> Iterator[str]:
    """An empty namespace; with all that is in it, it is deleted after the test (which does not wait for that)."""
    with _namespace(access) as name:
        yield name


@pytest.fixture
def real_namespace(real_cluster: RealCluster) -> Iterator[str]:
    """The same on the cluster with real pods."""
    with _namespace(real_cluster.access) as name:
        yield name


@contextlib.contextmanager
def _namespace(access: Access) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    access.kubectl("create", "namespace", name)
    access.kubectl("wait", "--for=create", "--timeout=30s", f"--namespace={name}", "serviceaccount/default")
    yield name
    access.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def until() -> Callable[..., None]:
    """`until(condition, seconds)`: wait for it to be true; the condition's last value is shown if it never is."""
    return _until


def _until(condition: Callable[[], object], seconds: float = UNTIL_SECONDS) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (last := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not true after {seconds:g} s; the last answer was {last!r}")
        pause.wait(POLL_SECONDS)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """Where the workers meet."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="module")
def operator(
    simulated_nodes: SimulatedNodes,
    control_plane: ControlPlane,
    etcd: EtcdServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Program]:
    """One that works, with simulated nodes. A module that needs another one has its own fixture of this name."""
    with started_operator(control_plane, etcd, tmp_path_factory.mktemp("operator")) as program:
        yield program


@pytest.fixture
def workers(access: Access, namespace: str, etcd: EtcdServer) -> Iterator[SimulatedWorkers]:
    with access.client() as api, SimulatedWorkers(api, namespace, etcd.endpoint) as simulated:
        yield simulated


@pytest.fixture
def group(access: Access, namespace: str, until: Callable[..., None], operator: Program) -> Group:
    return Group(access, namespace, until)
