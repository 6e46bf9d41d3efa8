"""Members join, leave, are drained and are killed under constant calls: nothing is lost, nothing runs twice.

`RPCGROUP_CHAOS_RUNS` says how many random histories (make test-chaos: 100), `RPCGROUP_CHAOS_SEED` with which
seed they begin; each run prints its own.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.testing.chaos import judge
from rpcgroup.testing.chaos_group import ChaosGroup

RUNS = int(os.environ.get("RPCGROUP_CHAOS_RUNS", "3"))
FIRST_SEED = int(os.environ.get("RPCGROUP_CHAOS_SEED", "1"))
SIZE = 6
STEPS = 6
TTL = 2


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + RUNS))
def test_no_call_is_lost_or_run_twice(seed: int, etcd: EtcdServer, tmp_path: Path) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    workers = ChaosGroup(etcd, tmp_path, f"churn-{seed}", TTL, seed)
    try:
        names = [f"w{i}" for i in range(SIZE)]
        for name in names:
            workers.start(name)
        for name in names:
            workers.await_joined(name)
        number = SIZE
        history = []
        for _ in range(STEPS):
            there = sorted(workers.processes)
            step = chance.choice(["join", "leave", "drain", "kill"] if len(there) > 2 else ["join"])
            name = chance.choice(there)
            history.append(f"{step} {name}")
            if step == "join":
                name, number = f"w{number}", number + 1
                workers.start(name)
                workers.await_joined(name)
            elif step == "leave":
                workers.leave(name)
            elif step == "drain":
                workers.drain(name)
            else:
                workers.kill(name)
        for name in sorted(workers.processes):
            workers.controls[name].send("leave")
        for name in sorted(workers.processes):
            workers.await_left(name)
    finally:
        workers.close()
    verdict = judge(tmp_path, workers.killed)
    print(f"{history}: {verdict.calls} calls, {dict(verdict.outcomes)}")
    assert not verdict.faults, "\n".join(verdict.faults[:20])
    assert not workers.left_threads
    assert verdict.outcomes["ok"] > 100
