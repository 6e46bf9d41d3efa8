"""Programs of `examples/torch_rpc`, and torch's own, say the same on torch's RPC and on this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 240.0
PROGRAMS = ("parameter_server", "pipeline", "actor_learner")


def output(*prefix: str, program: str) -> str:
    command = [*prefix, sys.executable, "-W", "ignore", "-m", f"examples.torch_rpc.{program}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RPCGROUP_", "MASTER_"))}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, env=env, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_says_the_same(program: str) -> None:
    ours = output(str(Path(sys.executable).with_name("rpcgroup")), "exec", "--", program=program)
    assert ours
    assert ours == output(program=program)
