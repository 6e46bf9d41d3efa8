"""The URL of a rendezvous: `etcd://HOST:PORT[,HOST:PORT...]/NAMESPACE/GROUP`, `memory://NAME/NAMESPACE/GROUP`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from rpcgroup import contract
from rpcgroup.errors import RendezvousError
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.rendezvous import Rendezvous

__all__ = ["SCHEMES", "RendezvousUrl", "open_rendezvous", "parse_rendezvous_url"]

SCHEMES: Final = ("etcd", "memory")
DEFAULT_ETCD_PORT: Final = 2379


@dataclass(frozen=True)
class RendezvousUrl:
    """`places`: `host:port` of each etcd endpoint, or the one name of a memory rendezvous."""

    scheme: str
    places: tuple[str, ...]
    namespace: str
    group: str


def parse_rendezvous_url(url: str) -> RendezvousUrl:
    """Raises `RendezvousError` that names the part at fault and the form that is expected."""
    scheme, separator, rest = url.partition("://")
    places, *path = rest.split("/")
    if not separator or scheme not in SCHEMES:
        raise _error(url, "it begins with neither etcd:// nor memory://")
    if any(mark in rest for mark in "?#@"):
        raise _error(url, "options and credentials do not stand in the URL")
    if len(path) != 2 or not all(path):
        raise _error(url, "its path is not /NAMESPACE/GROUP")
    named = tuple(place.strip() for place in places.split(","))
    if not all(named):
        raise _error(url, "it names no place, or an empty one")
    if scheme == "etcd":
        named = tuple(_with_port(url, place) for place in named)
    return RendezvousUrl(scheme, named, *path)


def open_rendezvous(
    url: str, *, lease_ttl: int | None = None, credentials: EtcdCredentials | None = None
) -> Rendezvous:
    """A seat that has not joined yet. Opening does not dial: an unreachable etcd shows at the first use.

    `lease_ttl` in seconds and `credentials` come from the environment (`contract.ENV_LEASE_TTL`,
    `contract.ENV_ETCD_*`) where they are not given. Raises `RendezvousError` for what cannot be used.
    """
    parsed = parse_rendezvous_url(url)
    if parsed.scheme == "memory":
        from rpcgroup.membership.memory import MemoryGroup, MemoryRendezvous

        return MemoryRendezvous(MemoryGroup.named(parsed.places[0], parsed.namespace, parsed.group))
    # gRPC takes half a second and 28 MB to import: only where etcd is used.
    from rpcgroup.membership.etcd.client import EtcdClient
    from rpcgroup.membership.etcd.keys import GroupKeys
    from rpcgroup.membership.etcd.rendezvous import EtcdRendezvous

    client = EtcdClient(parsed.places, credentials or EtcdCredentials.from_env())
    ttl = lease_ttl if lease_ttl is not None else _ttl_from_env()
    return EtcdRendezvous(client, GroupKeys(parsed.namespace, parsed.group), ttl)


def _with_port(url: str, place: str) -> str:
    """`host`, `host:port`, `[v6]` or `[v6]:port` -> with its port."""
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        return f"{place}:{DEFAULT_ETCD_PORT}"
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise _error(url, f"{place!r} is not HOST:PORT")
    return place


def _ttl_from_env() -> int:
    text = os.environ.get(contract.ENV_LEASE_TTL, str(contract.DEFAULT_LEASE_TTL))
    if not text.isdigit() or int(text) < 2:
        raise RendezvousError(f"{contract.ENV_LEASE_TTL}={text!r}: expected whole seconds, at least 2")
    return int(text)


def _error(url: str, fault: str) -> RendezvousError:
    return RendezvousError(
        f"not a rendezvous URL: {url!r}: {fault}; expected etcd://HOST:PORT[,HOST:PORT...]/NAMESPACE/GROUP "
        "or memory://NAME/NAMESPACE/GROUP"
    )
