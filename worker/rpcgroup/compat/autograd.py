"""`torch.distributed.autograd`: ours under torch's name."""

from __future__ import annotations

from rpcgroup.autograd import (
    DistAutogradContext,
    backward,
    context,
    get_gradients,
    is_available,
)

__all__ = ["DistAutogradContext", "backward", "context", "get_gradients", "is_available"]
