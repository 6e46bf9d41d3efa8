"""`rpcgroup scale`."""

from __future__ import annotations

import click

from rpcgroup.local.control import request
from rpcgroup.local.directory import find_running

__all__ = ["command"]


@click.command("scale")
@click.argument("group")
@click.argument("replicas", type=click.IntRange(min=0))
def command(group: str, replicas: int) -> None:
    """Change the number of elastic workers of the running GROUP to REPLICAS.

    Workers that are too many are drained: they finish what they have begun.
    """
    answer = request(find_running(group).socket, {"command": "scale", "replicas": replicas})
    click.echo(f"{group}: scaled from {answer['before']} to {answer['replicas']}")
