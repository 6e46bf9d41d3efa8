"""Two operators: one leads, and when it ends the other goes on where it stopped."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup_operator.leader import LEASE_SECONDS
from tests.cluster.bed.access import Access
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import Program
from tests.cluster.bed.simulated_nodes import SimulatedNodes
from tests.cluster.random_walk import Group, started_operator, walk
from tests.cluster.simulated_workers import SimulatedWorkers

pytestmark = pytest.mark.timeout(280)

NAMES: Final = ("operator-0", "operator-1")
LATE_SECONDS: Final = 10.0
"""On a busy machine, beyond the time for which the one that waits has to see nothing of the leader."""

Until = Callable[..., None]


class Operators:
    """By the names under which they hold the Lease."""

    def __init__(self, programs: dict[str, Program], access: Access, until: Until) -> None:
        self._programs = programs
        self._access = access
        self._until = until

    def leader(self) -> str:
        lease = self._access.get("lease/rpcgroup-operator", "--namespace=default", "--ignore-not-found")
        return str(lease["spec"].get("holderIdentity") or "")

    def end_leader(self, end: Callable[[Program], None], seconds: float) -> Program:
        """Returns the former one when the other leads; fails where that takes longer."""
        self._until(lambda: self.leader() in NAMES)
        former = self.leader()
        end(self._programs[former])
        began = time.monotonic()
        self._until(lambda: self.leader() not in ("", former), seconds)
        print(f"{self.leader()} took over from {former} after {time.monotonic() - began:.1f} s")
        return self._programs[former]


@pytest.fixture
def programs_of_two(
    simulated_nodes: SimulatedNodes, control_plane: ControlPlane, etcd: EtcdServer, tmp_path: Path
) -> Iterator[dict[str, Program]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(started_operator(control_plane, etcd, tmp_path, name=name))
            for name in NAMES
        }


@pytest.fixture
def operators(programs_of_two: dict[str, Program], access: Access, until: Until) -> Operators:
    return Operators(programs_of_two, access, until)


@pytest.fixture
def operator(programs_of_two: dict[str, Program]) -> Program:
    """Of the fixture `group`: any."""
    return programs_of_two[NAMES[0]]


def test_the_other_takes_over_from_a_killed_leader(
    group: Group, workers: SimulatedWorkers, operators: Operators
) -> None:
    dice = random.Random()

    def kill() -> None:
        threading.Event().wait(dice.random())  # a random moment of the work is what is meant
        operators.end_leader(Program.kill, LEASE_SECONDS + LATE_SECONDS).start()

    walk(group, workers, 2, kill)


def test_a_leader_that_is_stopped_hands_over_at_once(
    group: Group, workers: SimulatedWorkers, operators: Operators
) -> None:
    walk(group, workers, 2, lambda: operators.end_leader(Program.stop, LEASE_SECONDS - 5).start())


def test_a_leader_that_was_frozen_ends(
    group: Group, workers: SimulatedWorkers, operators: Operators, until: Until
) -> None:
    """When it comes to, another leads; what it had begun it must not go on with."""
    group.apply()
    before = group.settle()

    def freeze(leader: Program) -> None:
        group.scale(5)
        leader.freeze()

    former = operators.end_leader(freeze, LEASE_SECONDS + LATE_SECONDS)
    after = group.settle()
    group.scale(2)
    former.thaw()
    until(lambda: former.pid is None)
    former.start()
    assert before < after
    assert group.settle() < after
    assert workers.not_deregistered == []
