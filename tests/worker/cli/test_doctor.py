from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rpcgroup.cli import doctor
from rpcgroup.cli.checks import Finding

Call = Callable[..., Any]

FINDINGS = [Finding("torch", "ok", "2.15.0"), Finding("port", "warn", "busy", "free it")]


@pytest.fixture(params=["warn", "fail"])
def worst(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = [*FINDINGS, Finding("secret", request.param, "open", "close it")]
    monkeypatch.setattr(doctor, "examine", lambda _: iter(found))
    return str(request.param)


def test_findings_as_a_table(call: Call, worst: str) -> None:
    answer = call("doctor")
    assert answer.exit_code == (1 if worst == "fail" else 0)
    assert answer.out.splitlines() == [
        "ok    torch: 2.15.0",
        "warn  port: busy",
        "      -> free it",
        f"{worst}  secret: open",
        "      -> close it",
    ]


def test_findings_as_json(call: Call, worst: str) -> None:
    answer = call("doctor", "-o", "json")
    assert answer.exit_code == (1 if worst == "fail" else 0)
    assert json.loads(answer.out)[1] == {
        "check": "port",
        "verdict": "warn",
        "text": "busy",
        "mend": "free it",
    }
