"""`rpcgroup serve`."""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module

import click

import rpcgroup
from rpcgroup.errors import RpcGroupError

__all__ = ["command"]


@click.command("serve")
@click.option("-m", "modules", multiple=True, metavar="MODULE", help="Import it first; may be repeated.")
def command(modules: tuple[str, ...]) -> None:
    """Join the group that the environment names, serve calls, and leave when asked to drain."""
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as exc:
            if exc.name != module:
                raise
            raise RpcGroupError(f"no module named {module!r} in {os.getcwd()} or on the path") from exc
    asked_to_leave = threading.Event()
    rpcgroup.init_rpc()
    rpcgroup.on_drain(lambda *_: asked_to_leave.set())
    asked_to_leave.wait()
    rpcgroup.shutdown()
