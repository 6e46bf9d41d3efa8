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

NEEDS_A_GPU = {
    "test_a_worker_without_a_gpu_takes_part": "each process has emulated devices",
    "test_a_function_runs_out_of_memory": "memory of the host has no such limit",
    "test_an_argument_finds_no_memory": "memory of the host has no such limit",
    "test_a_result_finds_no_memory_at_the_caller": "memory of the host has no such limit",
    "test_a_cuda_error_reaches_the_caller_and_the_worker_serves_on": "operations of the host fail by themselves",
    "test_transfers": "it pins and shares memory by CUDA itself",
    "test_what_torchs_own_backend_passes": "torch's own backend needs a GPU",
}
"""Tests and modules of tests/gpu that emulated devices cannot run."""

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


def test_it_passes_on_emulated_devices(tmp_path: Path) -> None:
    """As it is, in all of its processes; memory is shared between them, too."""
    (tmp_path / "sitecustomize.py").write_text(
        "from rpcgroup.testing.emulated_cuda import emulate_cuda\nemulate_cuda(2)\n"
    )
    others = " or ".join(NEEDS_A_GPU)
    done = run(
        tmp_path,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rsfE",
        "--tb=short",
        "-k",
        f"not ({others})",
        "tests/gpu",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 x an emulated device" in done.stdout
    (skipped,) = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert "this pair shares its devices' memory" in skipped


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
