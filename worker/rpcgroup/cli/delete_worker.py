"""`rpcgroup delete-worker`."""

from __future__ import annotations

import click

from rpcgroup.local.control import request
from rpcgroup.local.directory import find_running

__all__ = ["command"]


@click.command("delete-worker")
@click.argument("group")
@click.argument("name")
def command(group: str, name: str) -> None:
    """Scale the running GROUP down by one, and let it be the worker NAME that leaves."""
    answer = request(find_running(group).socket, {"command": "delete-worker", "name": name})
    click.echo(f"{group}: {name} leaves; scaled from {answer['before']} to {answer['replicas']}")
