"""Run one rank here, or all of them, each in a process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

import torch.multiprocessing as mp

__all__ = ["launch"]


def launch(run: Callable[[int, int], None], world_size: int) -> None:
    """`run(rank, world_size)`: here for the one rank that the environment names, as torchrun and the pods of an
    RPCGroup do; else in a process for each, and where one of them fails, so does this.
    """
    if "RANK" in os.environ:
        run(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        return
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))
    sys.stdout.flush()
    mp.spawn(run, args=(world_size,), nprocs=world_size, join=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
