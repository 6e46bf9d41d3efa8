"""`rpcgroup exec`."""

from __future__ import annotations

import os
import sys
from typing import Final, NoReturn

import click

from rpcgroup.contract import COMPAT_TORCH, ENV_COMPAT

__all__ = ["command"]

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""As with `env`, `nohup` and the shells: no code of the program's own, by custom. Source: POSIX, env(1)."""


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument(
    "program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM [ARGUMENT...]"
)
def command(program: tuple[str, ...]) -> None:
    """Run a program written for torch.distributed.rpc as it is, on rpcgroup.

    It holds for all Python processes that the program starts, where rpcgroup is installed for them. The exit code is
    the program's; 127 where there is none of that name, 126 where it cannot be run.
    """
    os.environ[ENV_COMPAT] = COMPAT_TORCH
    try:
        os.execvp(program[0], program)
    except FileNotFoundError:
        _refuse(NOT_FOUND, f"no program {program[0]!r} to run, or no interpreter for it")
    except OSError as exc:
        _refuse(NOT_EXECUTABLE, f"{program[0]} cannot be run: {exc.strerror}")


def _refuse(code: int, why: str) -> NoReturn:
    click.echo(f"error: {why}", err=True)
    sys.exit(code)
