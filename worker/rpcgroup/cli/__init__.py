"""The commands of `rpcgroup`: one module for each, imported when it is called.

`rpcgroup --help` and `rpcgroup serve` in a small image must not need what other commands need.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

import click

from rpcgroup.errors import ManifestError, RpcGroupError, UnknownGroupError, UnknownWorkerError

__all__ = ["main"]

COMMANDS: Final = {
    "run": "Run the group of a manifest on this machine.",
    "scale": "Change the number of elastic workers of a running group.",
    "delete-worker": "Take one elastic worker out of a running group.",
    "status": "Show the running groups, or the workers of one.",
    "top": "Watch the workers of a running group.",
    "exec": "Run a torch.distributed.rpc program on rpcgroup, as it is.",
    "serve": "Be a worker that only serves calls.",
    "doctor": "Check what usually goes wrong, and say how to mend it.",
}

EXTRA: Final = ("pydantic", "pydantic_core", "yaml", "rich")
"""What `rpcgroup[local]` brings."""

BAD_INPUT: Final = (ManifestError, UnknownGroupError, UnknownWorkerError)


class Commands(click.Group):
    """Knows the commands by name and loads the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"rpcgroup.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rpcgroup", message="%(version)s")
def commands() -> None:
    """Elastic RPC groups for PyTorch."""


def main() -> None:
    """The `rpcgroup` command. Exit code 2 for bad input, 1 for what went wrong otherwise."""
    try:
        sys.exit(commands(standalone_mode=True))
    except RpcGroupError as exc:
        for line in str(exc).splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(2 if isinstance(exc, BAD_INPUT) else 1)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in EXTRA:
            raise
        click.echo(f"error: this command needs {exc.name}: pip install 'rpcgroup[local]'", err=True)
        sys.exit(1)
