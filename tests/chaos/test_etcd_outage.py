"""etcd is killed for three lease times under eight calling workers: nobody restarts, no call fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.testing.chaos import judge
from rpcgroup.testing.chaos_group import ChaosGroup

TTL = 3
SIZE = 8
BACK_WITHIN = 2.0
"""Seconds after etcd answers again until every record is there: the bar of this test, not a timing."""


@pytest.mark.timeout(180)
def test_an_outage_of_three_lease_times(tmp_path: Path) -> None:
    (tmp_path / "etcd").mkdir()
    (tmp_path / "ledgers").mkdir()
    etcd = EtcdServer(tmp_path / "etcd")
    etcd.start()
    workers = ChaosGroup(etcd, tmp_path / "ledgers", "outage", TTL, 1)
    try:
        names = [f"w{i}" for i in range(SIZE)]
        for name in names:
            workers.start(name)
        for name in names:
            workers.await_joined(name)
        etcd.kill()
        threading.Event().wait(3 * TTL)
        etcd.start()
        back = time.monotonic()
        while set(workers.rendezvous.view().members) != set(names):
            assert time.monotonic() - back < 30, sorted(workers.rendezvous.view().members)
        print(f"whole again {time.monotonic() - back:.2f} s after etcd was back")
        whole_after = time.monotonic() - back
        members = workers.rendezvous.view().members
        assert {m.name: m.incarnation for m in members.values()} == workers.incarnations
        for name in names:
            workers.controls[name].send("leave")
        for name in names:
            workers.await_left(name)
    finally:
        workers.close()
        etcd.stop()
    verdict = judge(tmp_path / "ledgers", set())
    print(f"{verdict.calls} calls, {dict(verdict.outcomes)}")
    assert not verdict.faults, "\n".join(verdict.faults[:20])
    assert whole_after <= BACK_WITHIN
