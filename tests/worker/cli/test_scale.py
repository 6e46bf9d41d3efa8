from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = Callable[..., Any]
Start = Callable[..., Any]


def test_scale_grows_a_running_group(start: Start, call: Call) -> None:
    job = start()
    job.wait_for("g-worker-0: ready")
    answer = call("scale", "g", "2")
    assert (answer.exit_code, answer.out) == (0, "g: scaled from 1 to 2\n")
    job.wait_for("g-worker-1: ready")
    below = call("scale", "default/g", "0")
    assert below.exit_code == 2
    assert below.err == "error: replicas: expected at least spec.minReplicas (1), got 0\n"


def test_an_unknown_group_lists_the_running(start: Start, call: Call) -> None:
    assert call("scale", "g", "3").err.startswith("error: no group 'g' runs on this machine; none does")
    start().wait_for("g-worker-0: started")
    answer = call("scale", "h", "3")
    assert answer.exit_code == 2
    assert answer.err == "error: no group 'h' runs on this machine; running: default/g\n"


def test_a_number_is_needed(call: Call) -> None:
    for wrong in ("-1", "many"):
        assert call("scale", "g", "--", wrong).exit_code == 2
