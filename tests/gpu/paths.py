"""Which way tensors come from another worker: through the host's memory, or by memory of devices that both share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final
from unittest.mock import patch

import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.cuda.inbound import Arrivals
from rpcgroup.wire.payloads import IPC, Payload

__all__ = ["shares_memory"]

PROBE_SECONDS: Final = 10.0
"""More than a pair takes to find out whether it can."""


def echo(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def shares_memory(agent: Agent, worker: str) -> bool:
    """Whether what that worker answers comes by shared memory; asks until it does, or for some seconds."""
    paths: list[int] = []
    expect = Arrivals.expect

    def noting(
        self: Arrivals, transfer_id: int, payloads: Sequence[Payload], *args: Any, **kwargs: Any
    ) -> Any:
        paths.extend(payload.path for payload in payloads)
        return expect(self, transfer_id, payloads, *args, **kwargs)

    sent = torch.ones(1 << 20, device="cuda:0")
    deadline = time.monotonic() + PROBE_SECONDS
    with patch.object(Arrivals, "expect", noting):
        while IPC not in paths and time.monotonic() < deadline:
            agent.rpc_sync(worker, echo, (sent,))
    return IPC in paths
