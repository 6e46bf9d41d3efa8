"""The driver with a real etcd and real processes; it runs in a thread of the test."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rpcgroup.contract import API_VERSION, KIND
from rpcgroup.control import certificates
from rpcgroup.control.model import RPCGroup
from rpcgroup.errors import GroupError, ManifestError, UnknownWorkerError
from rpcgroup.local.commands import answer
from rpcgroup.local.control import ControlServer, request
from rpcgroup.local.directory import GroupDirectory
from rpcgroup.local.driver import LocalDriver
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.local.wakeup import Wakeup
from rpcgroup.membership.url import open_rendezvous

PATIENCE = 60.0
MEMBER = str(Path(__file__).with_name("member.py"))


class Ears:
    """A reporter that keeps what it is told, and waits for what a test wants to hear."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.workers: dict[str, dict[str, Any]] = {}
        self.changed = threading.Condition()

    def event(self, subject: str, text: str) -> None:
        self._keep(f"{subject}: {text}")

    def line(self, worker: str, text: str) -> None:
        self._keep(f"[{worker}] {text}")

    def snapshot(self, snapshot: dict[str, Any]) -> None:
        with self.changed:
            self.workers = {worker["name"]: worker for worker in snapshot["workers"]}
            self.changed.notify_all()

    def close(self) -> None:
        pass

    def _keep(self, line: str) -> None:
        with self.changed:
            self.heard.append(line)
            self.changed.notify_all()

    def wait_for(self, *starts: str) -> None:
        """Until a line that begins so was heard for each, wherever it stands."""
        with self.changed:
            found = self.changed.wait_for(
                lambda: all(any(line.startswith(start) for line in self.heard) for start in starts), PATIENCE
            )
            assert found, f"never heard {starts} in:\n" + "\n".join(self.heard)

    def wait_for_many(self, start: str, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count(start) >= count, PATIENCE), "\n".join(self.heard)

    def count(self, start: str) -> int:
        return sum(line.startswith(start) for line in self.heard)


class Running:
    """A driver in a thread, and the ways to reach it."""

    def __init__(self, group: RPCGroup, directory: GroupDirectory, etcd: EtcdServer) -> None:
        self.etcd = etcd
        self.directory = directory
        self.ears = Ears()
        self.signals: deque[signal.Signals] = deque()
        self.exit_code: int | None = None
        self.wakeup = Wakeup()
        self._rendezvous = open_rendezvous(f"etcd://{etcd.endpoint}/default/g")
        self.driver = LocalDriver(group, directory, etcd, self._rendezvous, self.ears, self.wakeup, {})
        self._control = ControlServer(directory.socket, partial(answer, self.driver))
        self._thread = threading.Thread(target=self._run, name="rpcgroup-test-driver")
        self._thread.start()

    def _run(self) -> None:
        self.exit_code = self.driver.run(self._control, self.signals)

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        return request(self.directory.socket, {"command": command, **arguments}, timeout=30.0)

    def workers(self) -> dict[str, dict[str, Any]]:
        return {worker["name"]: worker for worker in self.ask("status")["workers"]}

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        self.wakeup.set()

    def wait(self) -> int:
        self._thread.join(PATIENCE)
        assert self.exit_code is not None, "the driver still runs:\n" + "\n".join(self.ears.heard)
        return self.exit_code

    def close(self) -> None:
        while self._thread.is_alive():
            self.signal(signal.SIGINT)
            self._thread.join(1.0)
        self._control.close()
        self._rendezvous.close()
        self.wakeup.close()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run a group whose elastic workers are `member.py` with these arguments; `spec` as in a manifest."""
    with ExitStack() as stack:

        def start(*arguments: str, command: list[str] | None = None, grace: int = 10, **spec: Any) -> Running:
            container = {"name": "main", "command": command or ["python", MEMBER, *arguments]}
            template = {"spec": {"containers": [container], "terminationGracePeriodSeconds": grace}}
            group = RPCGroup.model_validate(
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "metadata": {"name": "g"},
                    "spec": {"template": template, **spec},
                }
            )
            directory = GroupDirectory(tmp_path, "default", "g")
            stack.enter_context(directory.claimed())
            directory.write_secret()
            running = Running(group, directory, stack.enter_context(EtcdServer(directory.etcd)))
            stack.callback(running.close)
            return running

        yield start


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_it_grows_and_shrinks_and_the_rest_stays(start: Start) -> None:
    running = start(replicas=2, minReplicas=1, maxReplicas=4)
    running.ears.wait_for("g-worker-0: ready", "g-worker-1: ready")
    before = running.workers()
    assert running.ask("scale", replicas=3) == {"before": 2, "replicas": 3}
    running.ears.wait_for("g-worker-2: ready")
    running.ask("delete-worker", name="g-worker-0")
    running.ears.wait_for("[g-worker-0] drain: worker is scaled to 2", "g-worker-0: drained")
    after = running.workers()
    assert set(after) == {"g-worker-1", "g-worker-2"}
    assert after["g-worker-1"]["pid"] == before["g-worker-1"]["pid"]
    running.ask("scale", replicas=3)
    running.ears.wait_for("g-worker-2: ready")
    with running.ears.changed:
        assert running.ears.changed.wait_for(lambda: running.ears.count("g-worker-0: ready") == 2, PATIENCE)
    running.ask("scale", replicas=4)
    running.ears.wait_for("g-worker-3: ready")
    running.ask("scale", replicas=3)
    running.ears.wait_for("g-worker-3: asked to leave")  # not the one that now has the name deleted before
    with pytest.raises(ManifestError, match=r"at least spec\.minReplicas \(1\), got 0"):
        running.ask("scale", replicas=0)
    with pytest.raises(ManifestError, match=r"at most spec\.maxReplicas \(4\), got 9"):
        running.ask("scale", replicas=9)
    with pytest.raises(UnknownWorkerError, match="it has g-worker-0, g-worker-1, g-worker-2"):
        running.ask("delete-worker", name="g-worker-7")


def test_a_killed_worker_is_taken_out_at_once_and_comes_back(start: Start) -> None:
    running = start(replicas=2)
    running.ears.wait_for("g-worker-0: ready", "g-worker-1: ready")
    before = running.workers()
    os.kill(before["g-worker-0"]["pid"], signal.SIGKILL)
    running.ears.wait_for("g-worker-0: failed: killed by SIGKILL", "g-worker-0: taken out of the group")
    with running.ears.changed:
        assert running.ears.changed.wait_for(lambda: running.ears.count("g-worker-0: ready") == 2, PATIENCE)
    after = running.workers()
    assert after["g-worker-0"]["restarts"] == 1
    assert after["g-worker-0"]["incarnation"] > before["g-worker-0"]["incarnation"]
    assert after["g-worker-1"]["pid"] == before["g-worker-1"]["pid"]


def test_a_worker_that_crashes_too_often_fails_the_group(start: Start) -> None:
    running = start("crash", replicas=1, backoffLimit=1)
    assert running.wait() == 3, "\n".join(running.ears.heard)
    assert running.ears.count("g-worker-0: started") == 2
    running.ears.wait_for("g: Failed: failed more than 1 times in a row: g-worker-0")


def test_the_job_is_over_when_the_role_of_its_policy_has_succeeded(start: Start) -> None:
    chief = {"spec": {"containers": [{"name": "main", "command": ["python", MEMBER, "finish"]}]}}
    running = start(
        replicas=2,
        roles=[{"name": "chief", "replicas": 1, "template": chief}],
        successPolicy={"role": "chief"},
    )
    assert running.wait() == 0
    running.ears.wait_for("g-chief-0: succeeded", "g: Complete: all pods of the role chief have succeeded")


def test_a_worker_is_told_the_device_maps_of_its_role(start: Start) -> None:
    maps = [{"from": "worker", "to": "worker", "devices": {"cuda:0": "cuda:1"}}]
    told = python("import os; print(os.environ['RPCGROUP_DEVICE_MAPS'])")
    running = start(command=told, deviceMaps=maps)
    assert running.wait() == 0
    assert running.ears.count('[g-worker-0] {"worker": {"cuda:0": "cuda:1"}}') == 1


def test_processes_that_never_join_are_a_job_too(start: Start) -> None:
    running = start(command=python("print('hello')"), replicas=2)
    assert running.wait() == 0
    assert running.ears.count("[g-worker-0] hello") == running.ears.count("[g-worker-1] hello") == 1


def test_one_that_does_not_leave_in_time_is_evicted_and_killed(start: Start) -> None:
    running = start("stay", replicas=1, grace=1)
    running.ears.wait_for("g-worker-0: ready")
    running.signal(signal.SIGINT)
    assert running.wait() == 128 + signal.SIGINT
    heard = running.ears.heard
    evicted = heard.index("g-worker-0: taken out of the group")
    assert evicted < heard.index("g-worker-0: killed: it did not leave in time")


def test_the_first_signal_drains_and_the_second_kills(start: Start) -> None:
    running = start("stay", replicas=2, grace=3600)
    running.ears.wait_for("g-worker-0: ready", "g-worker-1: ready")
    running.signal(signal.SIGTERM)
    running.ears.wait_for("[g-worker-0] drain: ", "[g-worker-1] drain: ")
    with pytest.raises(GroupError, match="is ending"):
        running.ask("scale", replicas=3)
    running.signal(signal.SIGTERM)
    assert running.wait() == 128 + signal.SIGTERM


def test_an_etcd_that_dies_comes_back_and_no_worker_is_touched(start: Start) -> None:
    running = start(replicas=2)
    running.ears.wait_for("g-worker-0: ready", "g-worker-1: ready")
    pids = {name: worker["pid"] for name, worker in running.workers().items()}
    assert running.etcd.pid
    os.kill(running.etcd.pid, signal.SIGKILL)
    running.ears.wait_for("etcd: has ended; starting it again")
    running.ask("scale", replicas=3)
    running.ears.wait_for("g-worker-2: ready")
    assert {name: running.workers()[name]["pid"] for name in pids} == pids


def test_all_are_drained_while_etcd_does_not_answer(start: Start) -> None:
    running = start(replicas=2)
    running.ears.wait_for("g-worker-0: ready", "g-worker-1: ready")
    running.etcd.freeze()
    try:
        running.ears.wait_for("etcd: does not answer")
        running.signal(signal.SIGINT)
        running.ears.wait_for("g-worker-0: asked to leave", "g-worker-1: asked to leave")
        running.ears.wait_for("g-worker-0: drained", "g-worker-1: drained")
    finally:
        running.etcd.thaw()
    assert running.wait() == 128 + signal.SIGINT


def test_stats_of_the_workers_are_shown(start: Start) -> None:
    running = start(replicas=1)
    running.ears.wait_for("g-worker-0: ready")
    with running.ears.changed:
        assert running.ears.changed.wait_for(lambda: running.ears.workers["g-worker-0"]["stats"], PATIENCE)
    assert running.workers()["g-worker-0"]["stats"] == {"calls": 1, "progress": {"step": 5}}


CALLER = """
import time
import rpcgroup as rpc

def nothing():
    return 1

group = rpc.init_rpc()
print("address", group.me.address, flush=True)
while True:  # until it is drained
    others = [m.name for m in group.members() if m.name != group.name]
    for name in others:
        rpc.rpc_sync(name, nothing)
    print("called", len(others), flush=True)
    time.sleep(0.02)
"""


def test_workers_talk_tls_and_those_that_come_later_too(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who come first know nothing of the authority that has signed for the later ones, until they look."""
    running = start(replicas=2, minReplicas=0, security={"tls": True}, command=python(CALLER))
    running.ears.wait_for(*(f"[g-worker-{n}] address tls://127.0.0.1:" for n in range(2)))
    running.ears.wait_for("[g-worker-0] called 1", "[g-worker-1] called 1")
    monkeypatch.setattr(certificates, "DELAY", 1.0)
    monkeypatch.setattr(certificates, "ROLLOVER", certificates.AUTHORITY_LIFE - 5.0)
    assert running.driver._certificates is not None
    running.driver._certificates._change_at = 0.0
    running.ears.wait_for_many("g: new certificates", 3)
    running.ask("scale", replicas=3)
    running.ears.wait_for(*(f"[g-worker-{n}] called 2" for n in range(3)))
    assert [line for line in running.ears.heard if "failed" in line or "Error" in line] == []
    running.signal(signal.SIGINT)
    assert running.wait() == 128 + signal.SIGINT
