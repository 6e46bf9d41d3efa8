"""The operator is killed at random moments of its work, and what was asked for happens all the same."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.random_walk import KILLS, ROUNDS, Group, started_operator, walk
from tests.cluster.simulated_workers import SimulatedWorkers

pytestmark = pytest.mark.timeout(280)

Until = Callable[..., None]


@pytest.fixture
def operator(
    simulated_nodes: SimulatedNodes, control_plane: ControlPlane, etcd: EtcdServer, tmp_path: Path
) -> Iterator[Program]:
    with started_operator(control_plane, etcd, tmp_path) as program:
        yield program


@pytest.mark.parametrize("number", range(ROUNDS))
def test_random_steps_while_the_operator_is_killed(
    group: Group, workers: SimulatedWorkers, operator: Program, number: int
) -> None:
    dice = random.Random()

    def kill() -> None:
        threading.Event().wait(dice.random())  # a random moment of the work is what is meant
        operator.kill()
        operator.start()

    walk(group, workers, KILLS, kill)
