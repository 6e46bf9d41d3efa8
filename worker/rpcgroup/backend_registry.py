"""What `init_rpc` can start: backends by name, each with how its options and how its agent are made.

TENSORPIPE, the name of torch's only backend, means this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rpcgroup import api
from rpcgroup.group import Group
from rpcgroup.options import (
    DEFAULT_INIT_METHOD,
    DEFAULT_RPC_TIMEOUT,
    RpcBackendOptions,
    TensorPipeRpcBackendOptions,
    as_options,
)

__all__ = [
    "BackendType",
    "BackendValue",
    "backend_registered",
    "construct_rpc_backend_options",
    "infer_backend",
    "init_backend",
    "register_backend",
]


class BackendValue(NamedTuple):
    """How a backend's options are made, and how it is started."""

    construct_rpc_backend_options_handler: Callable[..., Any]
    init_backend_handler: Callable[..., Any]


class _Members(type):
    """Lets a class be looked through as an enum's class can be.

    An `enum.Enum` cannot grow: each new backend would make another class, and what a program imported before
    would be no member of it.
    """

    @property
    def __members__(cls) -> Mapping[str, BackendType]:
        return MappingProxyType(_backends)

    def __iter__(cls) -> Iterator[BackendType]:
        return iter(list(_backends.values()))

    def __len__(cls) -> int:
        return len(_backends)

    def __getitem__(cls, name: str) -> BackendType:
        return _backends[name]

    def __getattr__(cls, name: str) -> BackendType:
        try:
            return _backends[name]
        except KeyError:
            raise AttributeError(
                f"no RPC backend {name} is registered: there are {', '.join(_backends)}"
            ) from None


class BackendType(metaclass=_Members):
    """The registered backends: `BackendType.TENSORPIPE`, `BackendType["TENSORPIPE"]`, `for backend in BackendType`."""

    def __init__(self, name: str, value: BackendValue) -> None:
        self.name = name
        self.value = value

    def __repr__(self) -> str:
        return f"BackendType.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _backend, (self.name,)


_backends: dict[str, BackendType] = {}
"""Changed by `register_backend` alone, in the order of registration."""


def _backend(name: str) -> BackendType:
    return BackendType[name]


def backend_registered(backend_name: str) -> bool:
    return backend_name in BackendType.__members__


def register_backend(
    backend_name: str,
    construct_rpc_backend_options_handler: Callable[..., Any],
    init_backend_handler: Callable[..., Any],
) -> BackendType:
    """Add a backend: `construct_rpc_backend_options_handler(rpc_timeout, init_method, **kwargs)` makes its options,
    `init_backend_handler(store=..., name=..., rank=..., world_size=..., rpc_backend_options=...)` its agent.

    Raises `RuntimeError` where that name is taken.
    """
    if backend_registered(backend_name):
        raise RuntimeError(f"RPC backend {backend_name}: already registered")
    value = BackendValue(construct_rpc_backend_options_handler, init_backend_handler)
    backend = _backends[backend_name] = BackendType(backend_name, value)
    return backend


def construct_rpc_backend_options(
    backend: BackendType,
    rpc_timeout: float = DEFAULT_RPC_TIMEOUT,
    init_method: str = DEFAULT_INIT_METHOD,
    **kwargs: Any,
) -> Any:
    return backend.value.construct_rpc_backend_options_handler(rpc_timeout, init_method, **kwargs)


def init_backend(backend: BackendType, *args: Any, **kwargs: Any) -> Any:
    """Start it; returns its agent."""
    return backend.value.init_backend_handler(*args, **kwargs)


def infer_backend(rpc_backend_options: RpcBackendOptions) -> BackendType:
    """The backend that these are the options of; raises `TypeError` where there is none."""
    for backend in BackendType:
        if isinstance(rpc_backend_options, type(construct_rpc_backend_options(backend))):
            return backend
    raise TypeError(f"Could not infer backend for options {rpc_backend_options}")


def _construct_tensorpipe_options(
    rpc_timeout: float, init_method: str, **kwargs: Any
) -> TensorPipeRpcBackendOptions:
    known = ("num_worker_threads", "_transports", "_channels")
    return TensorPipeRpcBackendOptions(
        rpc_timeout=rpc_timeout,
        init_method=init_method,
        **{name: value for name, value in kwargs.items() if name in known},
    )


def _init_tensorpipe(
    store: Any, name: str, rank: int, world_size: int | None, rpc_backend_options: Any
) -> Group:
    options = as_options(rpc_backend_options)
    if not isinstance(options, TensorPipeRpcBackendOptions):
        raise TypeError(
            f"`rpc_backend_options` must be a `TensorPipeRpcBackendOptions`. {rpc_backend_options}"
        )
    return api.init_rpc(name, rank=rank, world_size=world_size, rpc_backend_options=options, store=store)


register_backend("TENSORPIPE", _construct_tensorpipe_options, _init_tensorpipe)
