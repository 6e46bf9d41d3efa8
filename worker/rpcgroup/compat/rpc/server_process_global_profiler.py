"""`torch.distributed.rpc.server_process_global_profiler`."""

from __future__ import annotations

__all__: list[str] = []
