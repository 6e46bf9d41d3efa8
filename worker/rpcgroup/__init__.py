"""rpcgroup: `torch.distributed.rpc` for groups that grow, shrink and lose members.

    import rpcgroup as rpc

    group = rpc.init_rpc()
    rpc.rpc_sync("server-0", function, args=(1, 2), timeout=5)
    rpc.shutdown()

Names are imported when they are first used: the commands and the operator import parts of this package where
there is no torch, and must start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpcgroup import autograd, errors, functions, nn, optim
    from rpcgroup.agent.options import AgentOptions
    from rpcgroup.api import (
        get_worker_info,
        init_rpc,
        on_drain,
        progress,
        remote,
        rpc_async,
        rpc_sync,
        shutdown,
    )
    from rpcgroup.futures import Future
    from rpcgroup.group import Group
    from rpcgroup.membership.record import MemberRecord, MemberState
    from rpcgroup.membership.rendezvous import DrainRequest
    from rpcgroup.membership.tracker import Change, ChangeKind
    from rpcgroup.rref.rref import RRef
    from rpcgroup.worker_info import WorkerInfo

__all__ = [
    "AgentOptions",
    "Change",
    "ChangeKind",
    "DrainRequest",
    "Future",
    "Group",
    "MemberRecord",
    "MemberState",
    "RRef",
    "WorkerInfo",
    "autograd",
    "errors",
    "functions",
    "get_worker_info",
    "init_rpc",
    "nn",
    "on_drain",
    "optim",
    "progress",
    "remote",
    "rpc_async",
    "rpc_sync",
    "shutdown",
]

_HOMES = {
    "AgentOptions": "agent.options",
    "Change": "membership.tracker",
    "ChangeKind": "membership.tracker",
    "DrainRequest": "membership.rendezvous",
    "Future": "futures",
    "Group": "group",
    "MemberRecord": "membership.record",
    "MemberState": "membership.record",
    "RRef": "rref.rref",
    "WorkerInfo": "worker_info",
    **dict.fromkeys(
        (
            "get_worker_info",
            "init_rpc",
            "on_drain",
            "progress",
            "remote",
            "rpc_async",
            "rpc_sync",
            "shutdown",
        ),
        "api",
    ),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, "")
    if not home and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{home or name}")
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise ImportError(
            "rpcgroup needs torch >= 2.6 and leaves the choice of its build to you: pip install torch"
        ) from exc
    value = getattr(module, name) if home else module
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
