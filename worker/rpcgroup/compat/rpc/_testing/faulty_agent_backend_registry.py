"""`torch.distributed.rpc._testing.faulty_agent_backend_registry`."""

from __future__ import annotations

import rpcgroup.testing.faulty_backend  # noqa: F401  # registers it

__all__: list[str] = []
