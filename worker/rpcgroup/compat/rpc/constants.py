"""`torch.distributed.rpc.constants`."""

from __future__ import annotations

from datetime import timedelta

from rpcgroup.agent.agent import UNSET_TIMEOUT
from rpcgroup.options import DEFAULT_INIT_METHOD, DEFAULT_NUM_WORKER_THREADS
from rpcgroup.options import DEFAULT_RPC_TIMEOUT as DEFAULT_RPC_TIMEOUT_SEC

__all__ = [
    "DEFAULT_INIT_METHOD",
    "DEFAULT_NUM_WORKER_THREADS",
    "DEFAULT_PROCESS_GROUP_TIMEOUT",
    "DEFAULT_RPC_TIMEOUT_SEC",
    "DEFAULT_SHUTDOWN_TIMEOUT",
    "UNSET_RPC_TIMEOUT",
]

DEFAULT_SHUTDOWN_TIMEOUT: float = 0
"""Seconds; 0 = none."""
DEFAULT_PROCESS_GROUP_TIMEOUT = timedelta(milliseconds=2**31 - 1)
UNSET_RPC_TIMEOUT: float = UNSET_TIMEOUT
