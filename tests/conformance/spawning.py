"""How the suite's processes are started here: forked from a server that has imported everything, in place of spawned.

torch's suite spawns four interpreters for each test, which takes most of its time.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import Any

__all__ = ["fork_from_server", "start_server"]


def start_server(module: str) -> None:
    """Its processes will have imported `module`."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([module])
    forkserver.ensure_running()


def fork_from_server() -> None:
    """Let the suite's helper start its processes so."""
    from torch.testing._internal.distributed.rpc_utils import SpawnHelper

    context = multiprocessing.get_context("forkserver")

    def _spawn_processes(self: Any) -> None:
        self._start_processes(context.Process)

    SpawnHelper._spawn_processes = _spawn_processes
