from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
Start = Callable[..., Any]


def test_the_named_worker_leaves(start: Start, call: Call) -> None:
    job = start()
    job.wait_for("g-worker-0: ready")
    call("scale", "g", "2")
    job.wait_for("g-worker-1: ready")
    answer = call("delete-worker", "g", "g-worker-0")
    assert (answer.exit_code, answer.out) == (0, "g: g-worker-0 leaves; scaled from 2 to 1\n")
    job.wait_for("g-worker-0: drained")
    assert "g-worker-1: asked to leave" not in job.written


def test_a_worker_that_is_not_there(start: Start, call: Call) -> None:
    start().wait_for("g-worker-0: started")
    answer = call("delete-worker", "g", "g-worker-9")
    assert answer.exit_code == 2
    assert answer.err == "error: no worker 'g-worker-9' in this group; it has g-worker-0\n"
