"""`rpcgroup status`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from rpcgroup.errors import GroupError
from rpcgroup.local.control import request
from rpcgroup.local.directory import GroupDirectory, find_running, running_groups
from rpcgroup.local.traffic import routes

__all__ = ["command"]


@click.command("status")
@click.argument("group", required=False)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(group: str | None, output: str) -> None:
    """Show the groups that run on this machine, or the workers of one GROUP."""
    if group is None:
        groups = [snapshot_or_fault(directory) for directory in running_groups()]
        click.echo(json.dumps(groups, indent=2) if output == "json" else table_of_groups(groups))
        return
    snapshot = request(find_running(group).socket, {"command": "status"})
    click.echo(json.dumps(snapshot, indent=2) if output == "json" else table_of_workers(snapshot))


def snapshot_or_fault(directory: GroupDirectory) -> dict[str, Any]:
    """One driver that hangs must not hide the others."""
    try:
        return request(directory.socket, {"command": "status"}, timeout=2.0)
    except GroupError as exc:
        return {"namespace": directory.namespace, "name": directory.group, "fault": str(exc)}


def table_of_groups(groups: Sequence[dict[str, Any]]) -> str:
    if not groups:
        return "no group runs on this machine; `rpcgroup run -f FILE` starts one"
    rows = [["NAMESPACE", "NAME", "READY", "WANTED", "EPOCH", "PID", "CONDITIONS"]]
    for group in groups:
        if "fault" in group:
            rows.append([group["namespace"], group["name"], "-", "-", "-", "-", group["fault"]])
            continue
        status = group["status"]
        ready, wanted = str(status["readyReplicas"]), str(group["spec"]["replicas"])
        about = [str(group["epoch"]), str(group["pid"]), conditions(status)]
        rows.append([group["namespace"], group["name"], ready, wanted, *about])
    return in_columns(rows)


def table_of_workers(snapshot: dict[str, Any]) -> str:
    rows = [["NAME", "ROLE", "STATE", "PID", "RESTARTS", "CALLS/S", "LATENCY MS", "RREFS"]]
    for worker in snapshot["workers"]:
        stats = worker["stats"]
        figures = [short(stats.get(key)) for key in ("calls_per_s", "latency_ms", "rrefs")]
        pid = str(worker["pid"] or "-")
        rows.append([worker["name"], worker["role"], worker["state"], pid, str(worker["restarts"]), *figures])
    head = f"{snapshot['namespace']}/{snapshot['name']}  epoch {snapshot['epoch']}"
    parts = [f"{head}  {conditions(snapshot['status'])}", in_columns(rows)]
    ways = [[*route[:3], str(route.size)] for route in routes(snapshot["workers"])]
    if ways:
        parts.append(in_columns([["TENSORS FROM", "TO", "PATH", "BYTES"], *ways]))
    return "\n\n".join(parts)


def conditions(status: dict[str, Any]) -> str:
    return " ".join(c["type"] for c in status["conditions"] if c["status"] == "True")


def short(value: object) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
