from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpcgroup.control.lifecycle import PodState
from rpcgroup.local.pod import LocalPod, deletion_cost
from rpcgroup.local.template import Command
from rpcgroup.membership.record import MemberRecord, MemberState

SLEEPER = "import signal; print('up', flush=True); signal.pause()"
ENDING = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit({}))\n" + SLEEPER
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEPER


class Watched(LocalPod):
    """A pod with what it told."""

    def __init__(self, log: Path) -> None:
        self.lines: list[str] = []
        self.events: list[str] = []
        super().__init__("w", "worker", 0, log, 100.0, self.lines.append, self.events.append)

    def run(self, code: str, now: float = 100.0) -> None:
        self.start(Command([sys.executable, "-c", code], dict(os.environ), None), now)

    def wait_for_line(self) -> None:
        assert self.process
        while not self.lines:
            assert self.process.output is not None
            assert select.select([self.process.output], [], [], 30.0)[0]
            self.process.pump()

    def end(self) -> None:
        self.wait_for_line()
        self.terminate()
        self.wait_for_end()

    def wait_for_end(self) -> None:
        assert self.process
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def new_pod(tmp_path: Path) -> Iterator[Callable[[], Watched]]:
    pods: list[Watched] = []

    def new() -> Watched:
        pods.append(Watched(tmp_path / "log"))
        return pods[-1]

    yield new
    for pod in pods:
        pod.close()


@pytest.fixture
def pod(new_pod: Callable[[], Watched]) -> Watched:
    return new_pod()


def record(incarnation: int, state: MemberState = MemberState.READY) -> MemberRecord:
    return MemberRecord("w", incarnation=incarnation, state=state)


def test_a_process_that_never_joins_and_ends_well_has_succeeded(pod: Watched) -> None:
    pod.run("print('done')")
    assert pod.state is PodState.RUNNING
    pod.wait_for_end()
    pod.observe(None, 101.0)
    assert (pod.state, pod.lines, pod.process) == (PodState.SUCCEEDED, ["done"], None)


def test_the_life_of_a_member(pod: Watched) -> None:
    pod.run(SLEEPER)
    pod.observe(record(5, MemberState.JOINING), 101.0)
    assert pod.state is PodState.RUNNING
    pod.observe(record(5), 102.0)
    assert pod.state is PodState.READY
    pod.observe(None, 103.0)
    assert pod.state is PodState.RUNNING
    pod.observe(record(5), 104.0)
    pod.drained(130.0, 104.0, "scaled")
    pod.observe(record(5, MemberState.DRAINING), 105.0)
    assert pod.state is PodState.DRAINING
    assert pod.observed().drain_deadline == 130.0
    pod.observe(None, 106.0)
    assert pod.state is PodState.LEFT


def test_a_crash_counts_and_a_restart_is_another_incarnation(pod: Watched) -> None:
    pod.run(ENDING.format(3))
    pod.observe(record(5), 101.0)
    pod.end()
    pod.observe(record(5), 102.0)
    observed = pod.observed()
    assert (observed.state, observed.failures, observed.failed_at) == (PodState.FAILED, 1, 102.0)
    assert pod.exit_status == 3
    pod.restart()
    pod.run(SLEEPER, 103.0)
    pod.observe(record(5), 104.0)
    assert pod.state is PodState.RUNNING, "a record of the dead process counted"
    pod.observe(record(6), 105.0)
    assert pod.state is PodState.READY
    assert pod.restarts == 1


def test_a_record_that_comes_into_sight_after_the_crash_is_not_the_next_process(pod: Watched) -> None:
    pod.run("raise SystemExit(3)")
    pod.wait_for_end()
    pod.observe(None, 101.0)
    pod.observe(record(5), 102.0)
    pod.restart()
    pod.run(SLEEPER, 103.0)
    pod.observe(record(5), 104.0)
    assert pod.state is PodState.RUNNING


def test_what_does_not_start_has_failed(pod: Watched, tmp_path: Path) -> None:
    pod.start(Command([sys.executable], {}, str(tmp_path / "missing")), 100.0)
    assert pod.state is PodState.FAILED
    assert "cannot be started" in pod.events[-1]


def test_delete_asks_first_and_kills_when_the_time_is_up(pod: Watched) -> None:
    pod.run(STUBBORN)
    pod.wait_for_line()
    pod.delete(grace=5.0, now=110.0)
    assert pod.kill_at == 115.0
    pod.observe(None, 114.9)
    assert pod.process is not None
    pod.observe(None, 115.0)
    pod.wait_for_end()
    pod.observe(None, 115.1)
    assert pod.state is PodState.GONE
    assert pod.exit_status == -9


def test_delete_without_grace_kills(pod: Watched) -> None:
    pod.run(STUBBORN)
    pod.observe(record(5), 101.0)
    pod.drained(102.0, 101.0, "scaled")
    pod.delete(grace=0.0, now=102.0)
    pod.wait_for_end()
    pod.observe(None, 103.0)
    assert pod.state is PodState.GONE


def test_delete_of_what_has_ended_is_done_at_once(pod: Watched) -> None:
    pod.run("")
    pod.wait_for_end()
    pod.observe(None, 101.0)
    pod.delete(grace=0.0, now=102.0)
    pod.observe(None, 102.0)
    assert pod.state is PodState.GONE


@pytest.mark.parametrize("status", [0, 1])
def test_the_end_of_a_drained_pod_is_no_failure(pod: Watched, status: int) -> None:
    pod.run(ENDING.format(status))
    pod.observe(record(5), 101.0)
    pod.drained(120.0, 101.0, "scaled")
    pod.end()
    pod.observe(None, 102.0)
    assert pod.state is PodState.EXITED


@pytest.mark.parametrize(("text", "cost"), [("-3", -3), ("cheap", 0), (None, 0)])
def test_deletion_cost(text: str | None, cost: int) -> None:
    assert deletion_cost({"k": text} if text else {}, "k") == cost
