"""What of tests/gpu can be told without a GPU: that it says so, what it needs, and that its workers work together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rpcgroup.testing.recording_device import recording_device
from tests.gpu import recorded
from tests.gpu.scenarios import SCENARIOS, World
from tests.gpu.workers import NO_GPU, device_maps, joined

pytestmark = pytest.mark.timeout(
    600
)  # several processes in turn that import torch, on a machine with two cores

ROOT = Path(__file__).parents[1]
SECONDS = 300.0
ONLY_TORCH_AND_PYTEST = """
import sys

class Missing:
    ours = {"click", "cloudpickle", "cryptography", "grpc", "hypothesis", "numpy", "psutil", "pydantic", "rich", "yaml"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.ours:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Where neither a GPU nor any package but torch's and pytest's own is to be found."""
    (folder / "missing.py").write_text(ONLY_TORCH_AND_PYTEST)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{folder}:{ROOT / 'worker'}"}
    command = [sys.executable, "-W", "ignore", *args]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_it_says_that_there_is_no_gpu_and_passes(tmp_path: Path) -> None:
    plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "missing"]
    done = run(tmp_path, "-m", "pytest", *plugins, "tests/gpu")
    assert (done.returncode, done.stderr) == (0, "")
    said = f"tests/gpu is skipped: torch {torch.__version__} finds no GPU here (torch.cuda.is_available() is false)"
    assert done.stdout.count(said) == 1
    assert "no tests ran" in done.stdout


def test_it_needs_torch_and_pytest_only(tmp_path: Path) -> None:
    """Each module is imported, as where there is a GPU."""
    modules = {path.stem for path in (ROOT / "tests/gpu").glob("*.py")}
    assert "test_calls" in modules
    imports = "; ".join(f"import tests.gpu.{module}" for module in sorted(modules - {"conftest"}))
    done = run(tmp_path, "-c", f"import missing; {imports}")
    assert done.returncode == 0, done.stderr


def test_its_workers_do_what_they_are_to_do_with_recorded_devices(tmp_path: Path) -> None:
    """As processes, so by the host's memory."""
    maps = {name: devices for name, devices in device_maps(2).items() if name != "hurt"}
    with recording_device() as device, joined(tmp_path / "meeting", maps, recorded.serve) as group:
        world = World(group.agent, device, torch.device(maps["there"]["cuda:0"]))
        for scenario in SCENARIOS:
            scenario(world)
        for name in maps:
            assert group.agent.rpc_sync(name, recorded.violations) == []
        assert not group.agent.rpc_sync(NO_GPU, torch.cuda.is_available)
