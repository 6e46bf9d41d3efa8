"""`torch.distributed.rpc`: starting, and all names that a program finds there."""

from __future__ import annotations

import logging
import numbers
from datetime import timedelta
from typing import Any

import torch.distributed

from rpcgroup.backend_registry import infer_backend
from rpcgroup.c10d import is_init_method, open_store
from rpcgroup.compat import autograd as dist_autograd
from rpcgroup.compat.agent import RpcAgent, TensorPipeAgent
from rpcgroup.compat.rpc import (
    api,
    backend_registry,
    constants,
    functions,
    internal,
    options,
    rref_proxy,
    server_process_global_profiler,
)
from rpcgroup.compat.rpc.api import (
    AllGatherStates,
    PyRRef,
    RRef,
    _cleanup_python_rpc_handler,
    _delete_all_user_and_unforked_owner_rrefs,
    _destroy_rref_context,
    _get_current_rpc_agent,
    _is_current_rpc_agent_set,
    _reset_current_rpc_agent,
    _rref_context_get_debug_info,
    _set_and_start_rpc_agent,
    _set_rpc_timeout,
    _wait_all,
    enable_gil_profiling,
    get_rpc_timeout,
    get_worker_info,
    remote,
    rpc_async,
    rpc_sync,
    shutdown,
)
from rpcgroup.compat.rpc.backend_registry import (
    BackendType,
    BackendValue,
    backend_registered,
    construct_rpc_backend_options,
    init_backend,
    register_backend,
)
from rpcgroup.compat.rpc.constants import DEFAULT_INIT_METHOD as _DEFAULT_INIT_METHOD
from rpcgroup.compat.rpc.constants import DEFAULT_NUM_WORKER_THREADS as _DEFAULT_NUM_WORKER_THREADS
from rpcgroup.compat.rpc.constants import DEFAULT_RPC_TIMEOUT_SEC as _DEFAULT_RPC_TIMEOUT_SEC
from rpcgroup.compat.rpc.constants import UNSET_RPC_TIMEOUT as _UNSET_RPC_TIMEOUT
from rpcgroup.compat.rpc.server_process_global_profiler import _server_process_global_profile
from rpcgroup.environment import Environment
from rpcgroup.errors import GroupError
from rpcgroup.group import Group
from rpcgroup.meeting import patience
from rpcgroup.options import RpcBackendOptions, TensorPipeRpcBackendOptions, as_options
from rpcgroup.worker_info import WorkerInfo

__all__ = [
    "AllGatherStates",
    "BackendType",
    "BackendValue",
    "PyRRef",
    "RRef",
    "RpcAgent",
    "RpcBackendOptions",
    "TensorPipeAgent",
    "TensorPipeRpcBackendOptions",
    "WorkerInfo",
    "api",
    "backend_registered",
    "backend_registry",
    "constants",
    "construct_rpc_backend_options",
    "enable_gil_profiling",
    "functions",
    "get_rpc_timeout",
    "get_worker_info",
    "init_backend",
    "init_rpc",
    "internal",
    "is_available",
    "options",
    "register_backend",
    "remote",
    "rpc_async",
    "rpc_sync",
    "rref_proxy",
    "server_process_global_profiler",
    "shutdown",
]

logger = logging.getLogger(__name__)
dist: Any = torch.distributed  # its stub exports little of what is needed here
_is_tensorpipe_available = True
_TensorPipeRpcBackendOptionsBase = TensorPipeRpcBackendOptions


def is_available() -> bool:
    return True


def init_rpc(
    name: str,
    backend: BackendType | None = None,
    rank: int = -1,
    world_size: int | None = None,
    rpc_backend_options: Any = None,
) -> None:
    """Join a group; returns when this worker serves calls, in a static group when all do.

    With `world_size` the group is static; without, workers come and go. It meets where the options' `init_method`
    says: at any place of torch's, or at `etcd://HOST:PORT/NAMESPACE/GROUP`. With torch's default, `env://`, it
    meets in a pod of an RPCGroup and under `rpcgroup run` where the environment says.
    Raises `TypeError` for a backend or options that are none, `ValueError` for a rank or a size that is missing, and
    what `rpcgroup.init_rpc` raises.
    """
    if backend is not None and not isinstance(backend, BackendType):
        raise TypeError("Argument backend must be a member of BackendType")
    rpc_backend_options = as_options(rpc_backend_options)
    if rpc_backend_options is not None and not isinstance(rpc_backend_options, RpcBackendOptions):
        raise TypeError("Argument rpc_backend_options must be an instance of RpcBackendOptions")
    if backend is None:
        backend = _infer_backend(rpc_backend_options)
    if rpc_backend_options is None:
        rpc_backend_options = construct_rpc_backend_options(backend)
    if _is_current_rpc_agent_set():
        raise GroupError("RPC is already initialized: call shutdown before another init_rpc")
    dist_autograd._init(rank)
    _set_profiler_node_id(rank)
    if not _meets_at_store(rpc_backend_options.init_method):
        _start(backend, None, name, rank, world_size, rpc_backend_options)
        return
    store = _open_store(rpc_backend_options, rank, world_size)
    _init_rpc_backend(backend, store, name, rank, world_size, rpc_backend_options)


def _infer_backend(rpc_backend_options: RpcBackendOptions | None) -> BackendType:
    default: BackendType = BackendType["TENSORPIPE"]
    if rpc_backend_options is None:
        return default
    backend = infer_backend(rpc_backend_options)
    if backend is not default:
        logger.warning("init_rpc was given no backend: by its options it is %r", backend)
    return backend


def _meets_at_store(init_method: str) -> bool:
    """Whether a store of `torch.distributed` is where the group meets."""
    if init_method == _DEFAULT_INIT_METHOD and Environment.read().rendezvous:
        return False
    return is_init_method(init_method)


def _open_store(rpc_backend_options: RpcBackendOptions, rank: int, world_size: int | None) -> Any:
    store: Any
    if world_size:
        timeout = patience(rpc_backend_options.rpc_timeout)
        store = open_store(rpc_backend_options.init_method, rank, world_size, timeout).store
    else:
        store = dist._create_store_from_options(rpc_backend_options, rank)
    if rpc_backend_options.rpc_timeout:
        store.set_timeout(timedelta(seconds=rpc_backend_options.rpc_timeout))
    return store


def _init_rpc_backend(
    backend: BackendType = BackendType["TENSORPIPE"],
    store: Any = None,
    name: str | None = None,
    rank: int = -1,
    world_size: int | None = None,
    rpc_backend_options: Any = None,
) -> None:
    """Start a backend over a store. Raises `RuntimeError` for arguments of wrong types."""
    rpc_backend_options = as_options(rpc_backend_options)
    for given, kind in (
        (backend, BackendType),
        (store, dist.Store),
        (name, str),
        (rank, numbers.Integral),
        (world_size, (numbers.Integral, type(None))),
        (rpc_backend_options, RpcBackendOptions),
    ):
        if not isinstance(given, kind):
            raise RuntimeError(f"Argument {given} must be of type {kind} but got type {type(given)}")
    if _is_current_rpc_agent_set():
        raise GroupError("RPC is already initialized: call shutdown before another init_rpc")
    _start(backend, store, name, rank, world_size, rpc_backend_options)


def _start(
    backend: BackendType, store: Any, name: Any, rank: int, world_size: int | None, rpc_backend_options: Any
) -> None:
    agent = init_backend(
        backend,
        store=store,
        name=name,
        rank=rank,
        world_size=world_size,
        rpc_backend_options=rpc_backend_options,
    )
    if isinstance(agent, Group):
        agent = TensorPipeAgent(agent, store, rpc_backend_options, world_size)
    api._init_rpc_states(agent)


@api._require_initialized
def _get_debug_info() -> dict[str, Any]:
    return {
        **_rref_context_get_debug_info(),
        **_get_current_rpc_agent().get_debug_info(),
        **dist_autograd._get_debug_info(),
    }


def _set_profiler_node_id(node_id: int) -> None:
    """The id that events of a profile have here."""


def _enable_jit_rref_pickle() -> None:
    """torch lets TorchScript pickle references between this and `_disable_jit_rref_pickle`; it cannot here."""


def _disable_jit_rref_pickle() -> None:
    pass
