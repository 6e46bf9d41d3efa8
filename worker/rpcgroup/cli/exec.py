"""`rpcgroup exec`."""

from __future__ import annotations

import os
import shutil

import click

from rpcgroup.contract import COMPAT_TORCH, ENV_COMPAT
from rpcgroup.errors import RpcGroupError

__all__ = ["command"]


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument(
    "program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM [ARGUMENT...]"
)
def command(program: tuple[str, ...]) -> None:
    """Run a program written for torch.distributed.rpc as it is, on rpcgroup.

    It holds for all Python processes that the program starts, where rpcgroup is installed for them. The exit code is
    the program's.
    """
    if shutil.which(program[0]) is None:
        raise RpcGroupError(
            f"no program {program[0]!r} to run: it is not on the PATH, or may not be executed"
        )
    os.environ[ENV_COMPAT] = COMPAT_TORCH
    try:
        os.execvp(program[0], program)
    except OSError as exc:
        raise RpcGroupError(f"{program[0]} cannot be run: {exc.strerror}") from exc
