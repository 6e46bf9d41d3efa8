"""How the suite's processes are started here: forked from a server that has imported everything, in place of spawned.

torch's suite spawns four interpreters for each test, which takes most of its time.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

__all__ = ["fork_from_server"]


def fork_from_server(module: str) -> None:
    """Let the suite's helper start its processes so; the server imports `module` first."""
    from torch.testing._internal.distributed.rpc_utils import SpawnHelper

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])

    def _spawn_processes(self: Any) -> None:
        self._start_processes(context.Process)

    SpawnHelper._spawn_processes = _spawn_processes
