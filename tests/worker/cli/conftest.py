"""A group that runs by `rpcgroup run` in a process of its own, and the commands called in this one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rpcgroup.cli import main

PATIENCE = 60.0
MEMBER = Path(__file__).parents[1] / "local" / "member.py"
RPCGROUP = [sys.executable, "-c", "from rpcgroup.cli import main; main()"]

MANIFEST = """
apiVersion: rpcgroup.dev/v1alpha1
kind: RPCGroup
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  minReplicas: {replicas}
  template:
    spec:
      terminationGracePeriodSeconds: 10
      containers: [{{name: main, command: [python, {script}, {argument}]}}]
"""


class Job:
    """`rpcgroup run`, and what it has written."""

    def __init__(self, manifest: Path) -> None:
        self.process = subprocess.Popen(
            [*RPCGROUP, "run", "-f", str(manifest)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.written = ""

    def wait_for(self, *texts: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while missing := [text for text in texts if text not in self.written]:
            assert self._read(deadline), f"never wrote {missing}:\n{self.written}"

    def wait(self) -> int:
        """Its exit code; what it wrote is complete then."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def _read(self, deadline: float) -> bool:
        assert self.process.stdout
        descriptor = self.process.stdout.fileno()
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        chunk = os.read(descriptor, 65536)
        self.written += chunk.decode()
        return bool(chunk)


@dataclass(frozen=True)
class Answer:
    exit_code: int
    out: str
    err: str


Call = Callable[..., Answer]
Start = Callable[..., Job]


@pytest.fixture(autouse=True)
def _state_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def run_manifest() -> Iterator[Callable[[Path], Job]]:
    jobs: list[Job] = []

    def run(manifest: Path) -> Job:
        jobs.append(Job(manifest))
        return jobs[-1]

    yield run
    for job in jobs:
        job.close()


@pytest.fixture
def start(tmp_path: Path, run_manifest: Callable[[Path], Job]) -> Start:
    def start(
        argument: str = "", *, name: str = "g", replicas: int = 1, script: Path = MEMBER, more: str = ""
    ) -> Job:
        manifest = tmp_path / f"{name}.yaml"
        text = MANIFEST.format(name=name, replicas=replicas, script=script, argument=argument)
        manifest.write_text(text + more)
        return run_manifest(manifest)

    return start


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command line in this process."""

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["rpcgroup", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        code = caught.value.code
        return Answer(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call
