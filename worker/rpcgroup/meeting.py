"""Where a group meets, and with it what its members share: its identity, its secret, how they connect."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rpcgroup import contract
from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.c10d import is_init_method, next_static, open_store, prefixed, store_host, store_place
from rpcgroup.environment import Environment, has_secret, own_address, read_secret, read_tls_files
from rpcgroup.errors import GroupError, JoinError, RendezvousError
from rpcgroup.membership.rendezvous import Rendezvous
from rpcgroup.membership.store.client import Store, StoreClient
from rpcgroup.membership.store.dynamic import DynamicRendezvous
from rpcgroup.membership.store.identity import group_identity, group_secret, has_group
from rpcgroup.membership.store.static import StaticRendezvous
from rpcgroup.membership.url import SCHEMES, open_rendezvous, parse_rendezvous_url
from rpcgroup.transport.base import Transport
from rpcgroup.transport.credentials import TlsCredentials
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.transport.tcp import TcpTransport
from rpcgroup.transport.tls import TlsTransport

__all__ = ["Meeting", "meet", "patience"]

WITHOUT_TIMEOUT: Final = 1800.0
"""Seconds; torch's for process groups."""
LEAST_PATIENCE: Final = 5.0
"""Seconds in any case: processes do not start at one moment."""
PLACES: Final = "etcd://HOST:PORT/NAMESPACE/GROUP, file:///PATH, tcp://HOST:PORT or env://"
"""For errors: where a program can meet."""
_memory_transport = MemoryTransport()


@dataclass(frozen=True)
class Meeting:
    """A seat at the place, and how to make the agent that goes with it."""

    rendezvous: Rendezvous
    rank: int
    world_size: int | None
    """Of a static group."""
    group: Callable[[], str]
    """The group's identity."""
    secret: Callable[[], bytes]
    transport: Callable[[], Transport]
    host: Callable[[], str]
    """Where to listen if nobody says otherwise."""

    def make_agent(self, name: str, environment: Environment, options: AgentOptions) -> Agent:
        return Agent(
            name=name,
            group=self.group(),
            secret=self.secret(),
            transport=self.transport(),
            host=environment.host or self.host(),
            port=environment.port,
            options=options,
        )

    def give_up(self, name: str, reason: BaseException) -> None:
        """This worker cannot start: whoever would wait for it is told, and the seat closed."""
        if isinstance(self.rendezvous, StaticRendezvous):
            self.rendezvous.give_up(name, self.rank, str(reason) or type(reason).__name__)
        self.rendezvous.close()


def patience(rpc_timeout: float) -> float:
    """Seconds that the members of a static group have to come, by the timeout of their calls (0 = none)."""
    return max(rpc_timeout or WITHOUT_TIMEOUT, LEAST_PATIENCE)


def meet(init_method: str, store: Store | None, rank: int, world_size: int | None, timeout: float) -> Meeting:
    """`init_method` is a rendezvous URL of ours or of `torch.distributed`; a `store` wins over it.

    `timeout` in seconds for a store to be there. Raises `RendezvousError` for what cannot be used, `JoinError` for
    a rank that is none of the group.
    """
    if store is None and not is_init_method(init_method):
        if init_method.partition("://")[0] not in SCHEMES:
            raise RendezvousError(f"init_method={init_method!r} is no place to meet: expected {PLACES}")
        return _meet_at_url(init_method, rank)
    if world_size is not None and rank >= world_size:
        raise JoinError(f"rank {rank} is none of 0 to {world_size - 1}, the ranks of world_size {world_size}")
    if store is None:
        store, rank = open_store(init_method, rank, world_size, timeout)
    return _meet_over_store(store, rank, world_size)


def _meet_at_url(url: str, rank: int) -> Meeting:
    parsed = parse_rendezvous_url(url)
    here = parsed.scheme == "memory"

    def host() -> str:
        address, _, port = parsed.places[0].rpartition(":")
        return own_address(address, int(port))

    return Meeting(
        open_rendezvous(url),
        rank,
        None,
        group=lambda: f"{parsed.namespace}/{parsed.group}",
        secret=read_secret,
        transport=lambda: _memory_transport if here else _transport(parsed.namespace, parsed.group),
        host=str if here else host,
    )


def _meet_over_store(store: Store, rank: int, world_size: int | None) -> Meeting:
    served_at = store_host(store)
    _refuse_a_mixture(store, world_size)
    client = StoreClient(prefixed(store, world_size))
    return Meeting(
        DynamicRendezvous(client)
        if world_size is None
        else StaticRendezvous(client, world_size, store_place(store)),
        rank,
        world_size,
        group=lambda: f"c10d/{group_identity(client)}",
        secret=lambda: read_secret() if has_secret() else group_secret(client),
        transport=_store_transport,
        host=lambda: own_address(*served_at) if served_at else _address_of_this_host(),
    )


def _refuse_a_mixture(store: Store, world_size: int | None) -> None:
    if world_size is None:
        others = "a static" if has_group(StoreClient(next_static(store))) else ""
    else:
        dynamic = DynamicRendezvous(StoreClient(prefixed(store, None)))
        others = "a dynamic" if dynamic.view().members else ""
    if others:
        raise JoinError(
            "RPC group mixes statically and dynamically initialized members which is not supported. "
            f"Members of {others} group are at this store: give all a world_size, or none"
        )


def _store_transport() -> Transport:
    """A store does not name the group, and its certificates do."""
    namespace = os.environ.get(contract.ENV_NAMESPACE) or contract.DEFAULT_NAMESPACE
    return _transport(namespace, os.environ.get(contract.ENV_GROUP, ""))


def _transport(namespace: str, group: str) -> Transport:
    files = read_tls_files()
    if files is None:
        return TcpTransport()
    if not group:
        raise GroupError(
            f"TLS needs the name of the group that the certificates are for: set {contract.ENV_GROUP}"
        )
    return TlsTransport(TlsCredentials(files, contract.tls_name(namespace, group)))


def _address_of_this_host() -> str:
    """What its name stands for, where that is an address of this host; else loopback: all may be on this host."""
    try:
        address = str(socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)[0][4][0])
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
            return address
    except OSError:
        return "127.0.0.1"
