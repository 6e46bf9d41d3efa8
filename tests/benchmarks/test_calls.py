from __future__ import annotations

import socket

import pytest

from benchmarks.calls import compare
from benchmarks.meeting import Meeting, free_port


def test_slices_of_a_peer_give_figures() -> None:
    said: list[str] = []
    meeting = Meeting({"RawSocket": free_port()})
    names = ["noop", "echo-1k", "async-64", "threads-8", "fetch"]
    report = compare(meeting, ["socket"], names, rounds=2, seconds=0.01, say=said.append)
    figures = {row.metric.name: row.rounds.get("socket") for row in report.rows}
    assert figures.pop("remote + to_here, p50") is None  # a socket has no references
    assert figures and all(values and len(values) == 2 and min(values) > 0 for values in figures.values())
    assert said[0] == "starting socket"


def test_a_peer_that_cannot_start_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        meeting = Meeting({"RawSocket": taken.getsockname()[1]})
        with pytest.raises(RuntimeError, match=r"socket, server: OSError: .*in use"):
            compare(meeting, ["socket"], ["noop"], rounds=1, seconds=0.01, say=lambda _: None)
