"""`torch.distributed.rpc._testing`: importing it registers the backend FAULTY_TENSORPIPE."""

from __future__ import annotations

from rpcgroup.compat.agent import TensorPipeAgent as FaultyTensorPipeAgent
from rpcgroup.compat.rpc._testing import faulty_agent_backend_registry
from rpcgroup.testing.faulty_backend import FaultyTensorPipeRpcBackendOptions

__all__ = [
    "FaultyTensorPipeAgent",
    "FaultyTensorPipeRpcBackendOptions",
    "faulty_agent_backend_registry",
    "is_available",
]


def is_available() -> bool:
    return True
