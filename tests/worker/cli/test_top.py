from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rpcgroup.cli import top

Call = Callable[..., Any]
Start = Callable[..., Any]


def test_looks_until_ctrl_c(start: Start, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    start().wait_for("g-worker-0: ready")
    pauses = iter([None])

    def pause(seconds: float) -> None:
        assert seconds == 0.5
        if next(pauses, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr(top, "sleep", pause)
    answer = call("top", "-n", "0.5", "-o", "json")
    assert answer.exit_code == 0
    assert [json.loads(line)["name"] for line in answer.out.splitlines()] == ["g", "g"]


def test_which_group(start: Start, call: Call) -> None:
    assert call("top").err == "error: no group runs on this machine\n"
    start().wait_for("g-worker-0: started")
    start(name="h").wait_for("h-worker-0: started")
    answer = call("top")
    assert (answer.exit_code, answer.err) == (2, "error: which group? running: default/g, default/h\n")
