"""PyTorch's own CUDA tests of RPC, from the installed torch: what its backend passes on this machine, this one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("click", "expecttest", "numpy")
"""By the suites, or by the program that runs them."""


def run(results: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.conformance", "--only", "(?i)cuda"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'worker'}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [*command, "--results", str(results), *args],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_what_torchs_own_backend_passes(tmp_path: Path) -> None:
    for module in NEEDED:
        pytest.importorskip(module)
    stock = run(tmp_path / "stock", "--stock")
    print(stock.stdout)
    ours = run(tmp_path / "ours", "--beside", str(tmp_path / "stock/results.json"))
    print(ours.stdout)
    assert ours.returncode == 0
