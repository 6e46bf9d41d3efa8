"""A cluster whose pods are real, held by a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.cluster.bed.access import Access
from tests.cluster.bed.condition import describe
from tests.cluster.bed.namespaces import first_process
from tests.cluster.bed.process import Program, StartError, answers
from tests.cluster.bed.real_node import NODE, check_requirements, import_command
from tests.cluster.bed.serve import API_SERVER_DOWN, API_SERVER_UP, READY

__all__ = ["RealCluster", "inside"]

UP_SECONDS: Final = 180.0
DOWN_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1


class RealCluster:
    """A control plane and one node with kubelet and containerd; a context manager.

    Pods have Service names and reach each other. This process reaches the API alone; what has to reach a pod's
    address runs `inside`.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        """`folder` gets data, keys, kubeconfigs and logs."""
        self.access = Access(folder, programs)
        self._folder = folder
        self._server = Program(
            "the cluster",
            [sys.executable, "-m", "tests.cluster.bed", "serve", "--real", "--dir", str(folder)],
            folder / "serve.log",
            (folder / READY).exists,
            patience=(UP_SECONDS, DOWN_SECONDS),
        )

    def start(self) -> None:
        """Returns when a pod can run. Raises `StartError`, or `RequirementError` for what the machine lacks."""
        check_requirements()
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        """End it as a killed test run does."""
        self._server.kill()

    @contextlib.contextmanager
    def without_api_server(self) -> Iterator[None]:
        """It is killed; after the block it is started again with its data, and so are those that
        watch it; the node is Ready when this returns."""
        self._server.send(API_SERVER_DOWN)
        self._wait("the API server still answers", lambda: not answers(f"{self.access.server}/readyz"))
        try:
            yield
        finally:
            self._server.send(API_SERVER_UP)
            self._wait("the cluster does not run again", (self._folder / READY).exists)
            self.access.kubectl("wait", "--for=condition=Ready", "--timeout=55s", f"node/{NODE}")

    def describe(self) -> str:
        """How it is, for somebody who wants to know why something does not work."""
        return describe(self.access, self._folder)

    def load(self, image: Path) -> None:
        """Give the node an image from its archive; pods name it by the name in there."""
        subprocess.run(self.inside(*import_command(image)), check=True, capture_output=True, timeout=120)

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` where pods have addresses and Services have names."""
        assert self._server.pid
        return inside(self._server.pid, *command)

    def _wait(self, complaint: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise StartError(complaint)
            time.sleep(POLL_SECONDS)

    def __enter__(self) -> RealCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def inside(holder: int, *command: str) -> list[str]:
    """`holder` is the process that holds the cluster."""
    target = str(first_process(holder))
    return [
        "nsenter",
        "--target",
        target,
        "--net",
        "--mount",
        "--uts",
        "--pid",
        f"--wd={os.getcwd()}",
        *command,
    ]
