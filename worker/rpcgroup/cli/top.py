"""`rpcgroup top`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from rpcgroup.errors import UnknownGroupError
from rpcgroup.local.control import request
from rpcgroup.local.directory import find_running, running_groups
from rpcgroup.local.view import picture

__all__ = ["command"]

EVENTS_SHOWN = 8


@click.command("top")
@click.argument("group", required=False)
@click.option(
    "-n",
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("-o", "--output", type=click.Choice(["live", "json"]), default="live", show_default=True)
def command(group: str | None, interval: float, output: str) -> None:
    """Watch the workers of a running GROUP (the only one where none is named) until Ctrl-C or its end.

    With `-o json` one line of JSON for each look. Where there is no terminal, one table for each look.
    """
    socket = find_running(group).socket if group else only_running()
    looks = look(socket, interval)
    if output == "json":
        for snapshot in looks:
            click.echo(json.dumps(snapshot))
        return
    console = Console()
    if not console.is_terminal:
        for snapshot in looks:
            console.print(picture(snapshot, EVENTS_SHOWN))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for snapshot in looks:
            live.update(picture(snapshot, EVENTS_SHOWN), refresh=True)


def look(socket: Path, interval: float) -> Iterator[dict[str, Any]]:
    """Until the group has ended, or Ctrl-C."""
    try:
        while socket.exists():
            yield request(socket, {"command": "status"})
            sleep(interval)
    except KeyboardInterrupt:
        return


def only_running() -> Path:
    running = running_groups()
    if len(running) == 1:
        return running[0].socket
    names = ", ".join(f"{d.namespace}/{d.group}" for d in running)
    raise UnknownGroupError(f"which group? running: {names}" if running else "no group runs on this machine")
