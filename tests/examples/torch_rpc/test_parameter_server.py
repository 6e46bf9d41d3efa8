"""The program as it is, in the processes of an RPCGroup that asks for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MANIFEST = ROOT / "manifests/samples/torch-rpc.yaml"
SECONDS = 110.0


def test_it_runs_as_a_group_that_asks_for_it(tmp_path: Path) -> None:
    manifest = tmp_path / "group.yaml"
    manifest.write_text(MANIFEST.read_text().replace("name: torch-rpc", "name: small"))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("rpcgroup")), "run", "-f", str(manifest)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, env=env, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "small: Complete" in run.stdout
    losses = re.findall(r"\[small-worker-0\] trainer(\d): (\S+) -> (\S+)", run.stdout)
    assert [trainer for trainer, _, _ in losses] == ["1", "2"]
    assert all(float(after) < float(before) / 5 for _, before, after in losses)
