"""`torch.distributed.rpc.options`."""

from __future__ import annotations

from rpcgroup.options import TensorPipeRpcBackendOptions

__all__ = ["TensorPipeRpcBackendOptions"]
