from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]

MANIFEST = """
apiVersion: rpcgroup.dev/v1alpha1
kind: RPCGroup
metadata: {name: g}
spec:
  replicas: 1
  template:
    spec: {containers: [{name: main, command: [python, caller.py]}]}
  roles:
    - name: server
      template:
        spec: {containers: [{name: main, command: [rpcgroup, serve, -m, triple]}]}
  successPolicy: {role: worker}
"""

TRIPLE = """
print("triple is here", flush=True)
def triple(x):
    return 3 * x
"""

CALLER = """
import triple, rpcgroup
group = rpcgroup.init_rpc()
group.wait_for(2, timeout=60)
print("answer", rpcgroup.rpc_sync("g-server-0", triple.triple, args=(14,)), flush=True)
rpcgroup.shutdown()
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "triple.py").write_text(TRIPLE)
    (tmp_path / "caller.py").write_text(CALLER)
    (tmp_path / "g.yaml").write_text(MANIFEST)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "g.yaml"


def test_it_serves_what_a_module_defines_until_it_is_drained(
    manifest: Path, run_manifest: Callable[[Path], Any]
) -> None:
    job = run_manifest(manifest)
    assert job.wait() == 0, job.written
    assert "[g-server-0] triple is here" in job.written
    assert "[g-worker-0] answer 42" in job.written
    assert "g-server-0: drained" in job.written


def test_a_module_that_is_not_there(call: Call) -> None:
    answer = call("serve", "-m", "no_such_module")
    assert answer.exit_code == 1
    assert answer.err == f"error: no module named 'no_such_module' in {os.getcwd()} or on the path\n"


def test_outside_a_group_it_says_what_is_missing(call: Call) -> None:
    answer = call("serve")
    assert answer.exit_code == 1
    assert answer.err.startswith("error: init_rpc does not know where the group meets")
