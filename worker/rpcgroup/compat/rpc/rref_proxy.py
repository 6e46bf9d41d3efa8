"""`torch.distributed.rpc.rref_proxy`."""

from __future__ import annotations

from rpcgroup.rref.rref import RRefProxy

__all__ = ["RRefProxy"]
