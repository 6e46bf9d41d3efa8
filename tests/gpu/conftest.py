"""The group that the tests share, each worker a process with the devices of this machine; nothing without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.scenarios import World
from tests.gpu.workers import CudaDevice, device_maps, joined

AVAILABLE = torch.cuda.is_available()
collect_ignore_glob = [] if AVAILABLE else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if AVAILABLE:
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        terminalreporter.write_line(f"torch {torch.__version__}, {len(devices)} x {devices[0]}")
    else:
        terminalreporter.write_line(
            f"tests/gpu is skipped: torch {torch.__version__} finds no GPU here "
            "(torch.cuda.is_available() is false)"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not AVAILABLE and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """This process is the worker `here`."""
    maps = device_maps(torch.cuda.device_count())
    with joined(tmp_path_factory.mktemp("group") / "meeting", maps) as group:
        yield World(group.agent, CudaDevice(), torch.device(maps["there"]["cuda:0"]))
