"""The stores of `torch.distributed` as places to meet. The only module that touches `torch.distributed`."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import torch.distributed

from rpcgroup.errors import RendezvousError, RendezvousUnavailableError
from rpcgroup.membership.store.client import StoreClient
from rpcgroup.membership.store.identity import store_identity

__all__ = [
    "OpenStore",
    "is_init_method",
    "next_static",
    "open_store",
    "prefixed",
    "store_host",
    "store_place",
]

VARIABLES: Final = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
"""What torch reads for `env://`."""
DYNAMIC: Final = -1
dist: Any = torch.distributed  # its stub exports nothing of this, and a torch may be built without it
_lock = threading.Lock()  # guards the two below
_inits: Counter[str] = Counter()
"""Static groups begun in this process, by the identity of their store: the n-th there of each member meet under one
prefix. torch's number those of the process, whatever the store; who has been in a group elsewhere never meets who
has not.
"""
_rendezvous: Iterator[Any] | None = None
"""Of the latest group. It may hold the server of a TCPStore that others still read."""


class OpenStore(NamedTuple):
    """`rank` is the one asked for, or where that was -1 the one that the environment names, if any."""

    store: Any
    rank: int


def is_init_method(url: str) -> bool:
    """Whether `torch.distributed.rendezvous` is asked to make sense of it."""
    return urlsplit(url).scheme in ("file", "tcp", "env")


def open_store(init_method: str, rank: int, world_size: int | None, timeout: float) -> OpenStore:
    """The store behind `file://PATH`, `tcp://HOST:PORT` or `env://`; `world_size` None: a dynamic group.

    Raises `RendezvousUnavailableError` where nobody serves it within `timeout` seconds, and `RendezvousError` for
    what is not such a URL.
    """
    if not dist.is_available():
        raise RendezvousError(
            f"cannot meet at {init_method}: this torch is built without torch.distributed. Meet in etcd"
        )
    url = _with_query(init_method, rank, world_size)
    try:
        rendezvous = dist.rendezvous(url, timeout=timedelta(seconds=timeout))
        store, found, _ = next(rendezvous)
    except ValueError as exc:
        raise RendezvousError(f"cannot meet at {init_method}: {exc}{_environment(url)}") from exc
    except RuntimeError as exc:
        raise RendezvousUnavailableError(f"cannot meet at {init_method}: {exc}") from exc
    global _rendezvous
    with _lock:
        _rendezvous = rendezvous  # only now: a server on the same port lives on, with all that it knows
    return OpenStore(store, found)


def prefixed(store: Any, world_size: int | None) -> Any:
    """This group's part of a store. A dynamic group is the same one for whoever comes, whatever came before.

    Raises `RendezvousUnavailableError` where the store does not answer; so does `next_static`.
    """
    if world_size is None:
        return dist.PrefixStore("rpcgroup/dynamic", store)
    identity = store_identity(StoreClient(store))
    with _lock:
        number = _inits[identity]
        _inits[identity] += 1
    return dist.PrefixStore(f"rpcgroup/{number}", store)


def next_static(store: Any) -> Any:
    """Where in a store the next static group of this process would be."""
    identity = store_identity(StoreClient(store))
    with _lock:
        return dist.PrefixStore(f"rpcgroup/{_inits[identity]}", store)


def store_host(store: Any) -> tuple[str, int] | None:
    """Where a TCPStore is served; None for the others."""
    store = _innermost(store)
    return (store.host, store.port) if hasattr(store, "host") else None


def store_place(store: Any) -> str:
    """For an error: which store it is."""
    if served_at := store_host(store):
        return "tcp://{}:{}".format(*served_at)
    store = _innermost(store)
    return f"file://{store.path}" if hasattr(store, "path") else f"a {type(store).__name__}"


def _innermost(store: Any) -> Any:
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return store


def _environment(url: str) -> str:
    """What torch has read there, for it does not say of which variable it complains."""
    if urlsplit(url).scheme != "env":
        return ""
    read = (f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ)
    return f" (in the environment: {', '.join(read) or 'none of ' + ', '.join(VARIABLES)})"


def _with_query(init_method: str, rank: int, world_size: int | None) -> str:
    """With what torch wants to know in the query.

    Only a FileStore needs the size of the group, to remove its file at the end. A TCPStore that knows it waits
    for so many to connect, and says of those that do not come only how many they are.
    """
    parts = urlsplit(init_method)
    size = world_size if world_size is not None and parts.scheme == "file" else DYNAMIC
    query = [parts.query] if parts.query else []
    if rank != -1 or parts.scheme != "env" or (world_size is None and "RANK" not in os.environ):
        query.append(f"rank={rank}")
    query.append(f"world_size={size}")
    return parts._replace(query="&".join(query)).geturl()
