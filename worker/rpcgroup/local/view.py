"""The live picture of a group in a terminal: members, epoch, job progress, the last events."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rpcgroup.local.traffic import routes

__all__ = ["LiveReporter", "picture"]

COLOURS: Final = {
    "ready": "green",
    "succeeded": "green",
    "failed": "red",
    "draining": "yellow",
    "left": "yellow",
    "terminating": "yellow",
}

REDRAW: Final = 0.1
"""Seconds; the picture changes no more often than a person can read."""

FIRST: Final = ("calls", "calls_per_s", "latency_ms", "rrefs", "in_flight")
"""The order of the figures that every worker has; those it adds follow."""


class LiveReporter:
    """Events and workers' lines scroll above a picture that stays; see `report.Reporter`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        self._drawn_at = 0.0

    def event(self, subject: str, text: str) -> None:
        when = time.strftime("%H:%M:%S ")
        self._console.print(Text.assemble((when, "dim"), (f"{subject}: {text}", "bold")))

    def line(self, worker: str, text: str) -> None:
        self._console.print(Text.assemble((f"[{worker}] ", "cyan"), Text.from_ansi(text)))

    def snapshot(self, snapshot: dict[str, Any]) -> None:
        if time.monotonic() - self._drawn_at >= REDRAW:
            self._live.update(picture(snapshot), refresh=True)
            self._drawn_at = time.monotonic()

    def close(self) -> None:
        self._live.stop()


def picture(snapshot: dict[str, Any], events: int = 0) -> RenderableType:
    """`events`: how many of the last ones to show below."""
    parts: list[RenderableType] = [headline(snapshot), table(snapshot["workers"])]
    parts += [Text(line) for line in progress(snapshot["workers"])]
    parts += [
        Text(f"{route.sender} -> {route.receiver}: {figure(route.size)} bytes of tensors by {route.path}")
        for route in routes(snapshot["workers"])
    ]
    for event in snapshot["events"][len(snapshot["events"]) - events :]:
        when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        parts.append(Text(f"{when} {event['subject']}: {event['text']}", style="dim"))
    return Group(*parts)


def headline(snapshot: dict[str, Any]) -> Text:
    status = snapshot["status"]
    shown = [c["type"] for c in status["conditions"] if c["status"] == "True"]
    line = Text(f"{snapshot['namespace']}/{snapshot['name']}", style="bold")
    line.append(
        f"   workers {status['readyReplicas']}/{snapshot['spec']['replicas']} ready"
        f"   epoch {snapshot['epoch']}   {' '.join(shown)}",
        style="not bold",
    )
    if snapshot["rendezvousAwaySince"] is not None:
        away = time.time() - snapshot["rendezvousAwaySince"]
        line.append(f"   etcd does not answer for {away:.0f} s", style="red")
    return line


def table(workers: Sequence[dict[str, Any]]) -> Table:
    result = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("NAME", "ROLE", "STATE", "PID", "RESTARTS"):
        result.add_column(name, no_wrap=True)
    figures = columns(workers)
    for key in figures:
        title = key.replace("_per_", "/").replace("_", " ").upper()
        result.add_column(title, justify="right", no_wrap=True)
    for worker in workers:
        state = Text(worker["state"], style=COLOURS.get(worker["state"], ""))
        pid = str(worker["pid"] or "-")
        result.add_row(
            worker["name"],
            worker["role"],
            state,
            pid,
            str(worker["restarts"]),
            *(figure(worker["stats"].get(key)) for key in figures),
        )
    return result


def columns(workers: Sequence[dict[str, Any]]) -> list[str]:
    """Every number that a worker tells of itself has one."""
    told = {key for w in workers for key, value in w["stats"].items() if isinstance(value, (int, float))}
    return [key for key in FIRST if key in told] + sorted(told.difference(FIRST))


def progress(workers: Iterable[dict[str, Any]]) -> Iterable[str]:
    """One line for each worker that says how far its job is, or anything else of its own."""
    for worker in workers:
        told = {k: v for k, v in worker["stats"].items() if not isinstance(v, (int, float))}
        told.pop("devices", None)  # see `routes`
        steps = told.pop("progress", {})
        shown = {**steps, **told} if isinstance(steps, dict) else {"progress": steps, **told}
        if shown:
            yield f"{worker['name']}: " + "  ".join(f"{k} {figure(v)}" for k, v in shown.items())


def figure(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
