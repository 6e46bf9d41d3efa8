from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rpcgroup.cli.status import table_of_workers

Call = Callable[..., Any]
Start = Callable[..., Any]


def test_nothing_runs(call: Call) -> None:
    assert "no group runs on this machine" in call("status").out
    assert json.loads(call("status", "-o", "json").out) == []


def test_running_groups_and_the_workers_of_one(start: Start, call: Call) -> None:
    job, other = start(), start(name="other")
    job.wait_for("g-worker-0: ready")
    other.wait_for("other-worker-0: ready")
    rows = [line.split() for line in call("status").out.splitlines()]
    assert [row[:4] for row in rows[1:]] == [["default", "g", "1", "1"], ["default", "other", "1", "1"]]
    assert [group["name"] for group in json.loads(call("status", "-o", "json").out)] == ["g", "other"]

    snapshot = json.loads(call("status", "g", "-o", "json").out)
    (worker,) = snapshot["workers"]
    assert (worker["name"], worker["role"], worker["state"]) == ("g-worker-0", "worker", "ready")
    assert worker["incarnation"] > 0
    assert snapshot["epoch"] >= worker["incarnation"]
    assert snapshot["status"]["readyReplicas"] == 1

    head, _, columns, row = call("status", "g").out.splitlines()
    assert head.startswith("default/g  epoch ")
    assert columns.startswith("NAME ")
    assert row.split()[:4] == ["g-worker-0", "worker", "ready", str(worker["pid"])]


def test_the_paths_of_tensors_on_devices_stand_below_the_workers() -> None:
    devices = {"g-worker-1": {"sent": {"ipc": 1048576, "host": 64}}}
    workers = [
        {"name": name, "role": "worker", "state": "ready", "pid": 7, "restarts": 0, "stats": stats}
        for name, stats in (("g-worker-0", {"rrefs": 1, "devices": devices}), ("g-worker-1", {}))
    ]
    group = {"namespace": "default", "name": "g", "epoch": 9, "status": {"conditions": []}}
    table = [line.split() for line in table_of_workers({**group, "workers": workers}).splitlines()]
    assert table[5:] == [
        [],
        ["TENSORS", "FROM", "TO", "PATH", "BYTES"],
        ["g-worker-0", "g-worker-1", "host", "64"],
        ["g-worker-0", "g-worker-1", "ipc", "1048576"],
    ]
    workers[0]["stats"].pop("devices")
    assert "TENSORS" not in table_of_workers({**group, "workers": workers})


def test_an_unknown_group(call: Call) -> None:
    answer = call("status", "g")
    assert answer.exit_code == 2
    assert answer.err.startswith("error: no group 'g' runs on this machine")
