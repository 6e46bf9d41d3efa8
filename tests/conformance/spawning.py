"""How the suite's processes are started here: forked from a server that has imported everything, in place of spawned.

torch's suite spawns four interpreters for each test, which takes most of its time. Where there is a GPU that is left as
it is: the suite looks for one as it is imported, and a process that has asked CUDA leaves none to those that it forks.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from typing import Any

import torch

from tests.conformance.swapped import ENV_EMULATED

__all__ = ["fork_from_server", "start_server"]


def start_server(module: str) -> None:
    """Its processes will have imported `module`."""
    if has_gpu():
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload([module])
    forkserver.ensure_running()


def fork_from_server() -> None:
    """Let the suite's helper start its processes so."""
    if has_gpu():
        return
    from torch.testing._internal.distributed.rpc_utils import SpawnHelper

    context = multiprocessing.get_context("forkserver")

    def _spawn_processes(self: Any) -> None:
        self._start_processes(context.Process)

    SpawnHelper._spawn_processes = _spawn_processes


def has_gpu() -> bool:
    return not os.environ.get(ENV_EMULATED) and torch.cuda.is_available()
