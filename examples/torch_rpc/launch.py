"""Start one process for each rank and wait for all of them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

import torch.multiprocessing as mp

__all__ = ["launch"]


def launch(run: Callable[[int, int], None], world_size: int) -> None:
    """`run(rank, world_size)` in each; where one of them fails, so does this."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    sys.stdout.flush()
    mp.spawn(run, args=(world_size,), nprocs=world_size, join=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
