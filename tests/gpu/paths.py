"""Which way tensors come from another worker: through the host's memory, or by memory that both can read."""

from __future__ import annotations

import time
from typing import Any, Final

import torch

from rpcgroup.agent.agent import Agent

__all__ = ["shares_memory"]

PROBE_SECONDS: Final = 10.0
"""More than a pair takes to find out whether it can."""


def echo(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def shares_memory(agent: Agent, worker: str, device: Any) -> bool:
    """Whether what that worker answers comes by shared memory; asks until it does, or for some seconds."""
    sent = device.tensor(torch.ones(1 << 20))
    deadline = time.monotonic() + PROBE_SECONDS
    while not (shares := "ipc" in received(agent, worker)) and time.monotonic() < deadline:
        agent.rpc_sync(worker, echo, (sent,))
    return shares


def received(agent: Agent, worker: str) -> dict[str, int]:
    """Bytes by path."""
    assert agent.accelerator is not None
    return agent.accelerator.traffic.by_peer(100).get(worker, {}).get("received", {})
