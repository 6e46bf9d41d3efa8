from __future__ import annotations

import os
import select
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
Start = Callable[..., Any]


def test_a_job_runs_to_its_end_and_leaves_only_its_logs(start: Start, tmp_path: Path) -> None:
    job = start("finish", replicas=2)
    assert job.wait() == 0
    assert "[g-worker-0] joined" in job.written
    assert "g-worker-1: succeeded" in job.written
    assert "g: Complete: all pods have succeeded" in job.written
    left = sorted(p.name for p in (tmp_path / "rpcgroup/default/g").iterdir())
    assert left == ["lock", "logs"]
    assert "joined" in (tmp_path / "rpcgroup/default/g/logs/g-worker-0.log").read_text()


def test_the_exit_code_is_that_of_the_worker_that_failed(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(7)")
    assert start(script=script, more="  backoffLimit: 0\n").wait() == 7


def test_ctrl_c_drains_all(start: Start) -> None:
    job = start(replicas=2)
    job.wait_for("g-worker-0: ready", "g-worker-1: ready")
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 128 + signal.SIGINT
    assert "SIGINT: draining all workers" in job.written
    assert "g-worker-0: drained" in job.written
    assert "g-worker-1: drained" in job.written


def test_a_second_ctrl_c_kills(start: Start) -> None:
    job = start("stay")
    job.wait_for("g-worker-0: ready")
    job.process.send_signal(signal.SIGINT)
    job.wait_for("[g-worker-0] drain")
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 128 + signal.SIGINT
    assert "SIGINT again: killing all workers" in job.written


def test_nothing_outlives_a_killed_driver_and_the_group_can_run_again(
    start: Start, call: Call, tmp_path: Path
) -> None:
    job = start()
    job.wait_for("g-worker-0: ready")
    children = [
        int(pid) for pid in Path(f"/proc/{job.process.pid}/task").glob("*/children") for pid in pids(pid)
    ]
    assert len(children) >= 2, "etcd and the worker"
    descriptors = [os.pidfd_open(pid) for pid in children]
    try:
        job.process.kill()
        job.process.wait()
        for descriptor in descriptors:
            assert select.select([descriptor], [], [], 30.0)[0], "a process outlived the driver"
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert call("status", "g").exit_code == 2
    again = start("finish")
    assert again.wait() == 0


def pids(children: Path) -> list[str]:
    return children.read_text().split()


def test_the_secret_is_the_users_alone(start: Start, tmp_path: Path) -> None:
    job = start()
    job.wait_for("g-worker-0: ready")
    directory = tmp_path / "rpcgroup/default/g"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "secret").stat().st_mode) == 0o600


def test_a_second_run_of_a_group_is_refused(start: Start, call: Call, tmp_path: Path) -> None:
    job = start()
    job.wait_for("g-worker-0: started")
    answer = call("run", "-f", str(tmp_path / "g.yaml"))
    assert answer.exit_code == 1
    assert answer.err.startswith(f"error: the group default/g runs already (pid {job.process.pid})")


BAD_FILES = {
    "missing": (None, "no such file"),
    "empty": (b"", "expected an RPCGroup, got an empty file"),
    "not YAML": (b"a: [", "line 1, column 5: not YAML"),
    "not text": (b"a: \xff", "expected UTF-8 text, got the byte 0xff"),
    "unknown field": (b"spec: {replica: 3}", 'spec.replica: unknown field; did you mean "replicas"?'),
}


@pytest.mark.parametrize(("content", "fault"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_told_with_its_name(
    call: Call, tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    answer = call("run", "-f", str(path))
    assert answer.exit_code == 2
    assert f"error: {path}: {fault}" in answer.err
    assert "Traceback" not in answer.err


def test_without_an_etcd_it_says_what_was_tried(
    call: Call, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPCGROUP_ETCD", str(tmp_path / "no-etcd"))
    job = start()
    assert job.wait() == 1
    assert "no-etcd" in job.written
    assert "Traceback" not in job.written
