from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpcgroup.local.process import MAX_LINE, WorkerProcess

Start = Callable[..., WorkerProcess]


class Lines(list[str]):
    pass


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def start(tmp_path: Path, lines: Lines) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    def start(*command: str) -> WorkerProcess:
        process = WorkerProcess(command, os.environ, None, tmp_path / "log", lines.append)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.close()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-c", code)


def pump_until(process: WorkerProcess, done: Callable[[], bool], seconds: float = 30.0) -> None:
    while not done() and process.output is not None:
        assert select.select([process.output], [], [], seconds)[0], "nothing came"
        process.pump()


def run_to_end(process: WorkerProcess) -> int:
    """A process closes its output when it ends, and has a status soon after."""
    pump_until(process, lambda: False)
    process.close()
    status = process.poll()
    assert status is not None
    return status


def test_lines_of_both_streams_go_to_the_callback_and_the_log(
    start: Start, lines: Lines, tmp_path: Path
) -> None:
    process = start(*python("import sys; print('out'); print('err', file=sys.stderr); print('tail', end='')"))
    assert run_to_end(process) == 0
    assert lines == ["out", "err", "tail"]
    assert (tmp_path / "log").read_text() == "out\nerr\ntail"


def test_a_line_without_end_is_passed_on_in_pieces(start: Start, lines: Lines) -> None:
    assert run_to_end(start(*python(f"print('x' * {3 * MAX_LINE}, end='')"))) == 0
    assert "".join(lines) == "x" * 3 * MAX_LINE
    assert max(map(len, lines)) < 3 * MAX_LINE


def test_bytes_that_are_no_text_do_not_harm(start: Start, lines: Lines) -> None:
    run_to_end(start(*python("import sys; sys.stdout.buffer.write(b'a\\xffb\\n')")))
    assert lines == ["a\ufffdb"]


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_status(start: Start, code: int) -> None:
    assert run_to_end(start(*python(f"raise SystemExit({code})"))) == code


def test_a_command_that_cannot_run(start: Start, lines: Lines) -> None:
    assert run_to_end(start("/no/such/program")) == 127
    assert lines == ["cannot run '/no/such/program': No such file or directory"]


def test_the_command_is_asked_to_end(start: Start, lines: Lines) -> None:
    code = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("there")
signal.pause()
"""
    process = start(*python(code))
    pump_until(process, lambda: "there" in lines)
    assert process.poll() is None
    process.terminate()
    assert run_to_end(process) == 7


def test_kill_takes_the_children_too(start: Start, lines: Lines) -> None:
    process = start(*python(PARENT + "child.wait()"))
    pump_until(process, lambda: bool(lines))
    process.kill()
    assert run_to_end(process) == -signal.SIGKILL  # ends only when the child's copy of the output is closed


def test_children_left_behind_are_killed(start: Start, lines: Lines) -> None:
    process = start(*python(PARENT))
    pump_until(process, lambda: bool(lines))
    wait_for_end(process)
    assert process.poll() == 0
    assert run_to_end(process) == 0


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid)
"""


def wait_for_end(process: WorkerProcess) -> None:
    """Without reaping it."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_ctrl_c_in_the_terminal_does_not_reach_it(start: Start) -> None:
    process = start(*python("import signal; signal.pause()"))
    assert os.getsid(process.pid) != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_it_does_not_outlive_a_killed_driver(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout
    worker = int(driver.stdout.readline())
    descriptor = os.pidfd_open(worker)
    try:
        driver.kill()
        driver.communicate()
        assert select.select([descriptor], [], [], 30.0)[0], "the worker still runs"
    finally:
        os.close(descriptor)


DRIVER = """
import os, select, sys
from pathlib import Path
from rpcgroup.local.process import WorkerProcess
lines = []
code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
process = WorkerProcess([sys.executable, "-c", code], os.environ, None, Path(sys.argv[1]), lines.append)
while not lines:
    select.select([process.output], [], [])
    process.pump()
print(lines[0], flush=True)
select.select([], [], [])
"""
