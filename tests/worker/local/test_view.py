from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from rpcgroup.local.view import LiveReporter, picture


def snapshot(**changes: Any) -> dict[str, Any]:
    stats = {"calls": 12345, "calls_per_s": 1234.5, "latency_ms": 0.25, "rrefs": 3, "progress": {"epoch": 7}}
    return {
        "namespace": "default",
        "name": "digits",
        "epoch": 9,
        "rendezvousAwaySince": None,
        "spec": {"replicas": 3},
        "status": {"readyReplicas": 2, "conditions": [{"type": "Available", "status": "True"}]},
        "workers": [worker("digits-worker-0", stats), worker("digits-worker-1", {"novel": 1})],
        "events": [{"time": 0.0, "subject": "digits-worker-1", "text": "ready"}],
        **changes,
    }


def worker(name: str, stats: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "role": "worker", "state": "ready", "pid": 12, "restarts": 0, "stats": stats}


def drawn(what: dict[str, Any], events: int = 0) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(picture(what, events))
    return stream.getvalue()


def test_the_picture_shows_members_figures_and_progress() -> None:
    lines = drawn(snapshot()).splitlines()
    assert "default/digits" in lines[0]
    assert "workers 2/3 ready   epoch 9   Available" in lines[0]
    assert lines[2].split() == [
        *("digits-worker-0", "worker", "ready", "12", "0", "12,345", "1,234", "0.25", "3", "-"),
    ]
    assert lines[1].split()[5:] == ["CALLS", "CALLS/S", "LATENCY", "MS", "RREFS", "NOVEL"]
    assert "digits-worker-0: epoch 7" in lines


def test_events_are_shown_where_they_do_not_scroll_by() -> None:
    assert "digits-worker-1: ready" not in drawn(snapshot())
    assert "digits-worker-1: ready" in drawn(snapshot(), events=5)


def test_an_outage_is_shown() -> None:
    assert "etcd does not answer for" in drawn(snapshot(rendezvousAwaySince=0.0))


def test_stats_of_any_shape_can_be_drawn() -> None:
    odd = snapshot(workers=[worker("w", {"calls": "many", "progress": [1], "rrefs": None, "x": {"y": 1}})])
    assert "w: progress [1]  calls many  rrefs -  x {'y': 1}" in drawn(odd)


def test_how_tensors_on_devices_travel() -> None:
    devices = {"w1": {"sent": {"ipc": 1 << 20, "host": 64}, "received": {"ipc": 5}}}
    lines = drawn(snapshot(workers=[worker("w0", {"calls": 1, "devices": devices})])).splitlines()
    assert lines[3:] == [
        "w0 -> w1: 64 bytes of tensors by host",
        "w0 -> w1: 1,048,576 bytes of tensors by ipc",
    ]


def test_lines_scroll_above_the_picture() -> None:
    stream = io.StringIO()
    reporter = LiveReporter(Console(file=stream, force_terminal=True, width=200))
    reporter.line("w", "loss [0.5] \x1b[31mred\x1b[0m")
    reporter.event("digits", "Complete")
    reporter.snapshot(snapshot())
    reporter.close()
    assert "loss [0.5]" in stream.getvalue()
    assert "Complete" in stream.getvalue()
    assert "epoch 9" in stream.getvalue()
