"""`torch.distributed.rpc.server_process_global_profiler`."""

from __future__ import annotations

from rpcgroup.profiler import server_process_global_profile

__all__: list[str] = []
_server_process_global_profile = server_process_global_profile
