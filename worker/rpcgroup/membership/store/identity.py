"""What makes the members of a group over a store sure of each other: its identity and its secret, and the store's.

Whoever can read the store can join: a store that others of the machine or the network can read is no place for
a secret, and the environment may give one instead (`contract.ENV_SECRET_FILE`).
"""

from __future__ import annotations

from rpcgroup.membership.record import new_token
from rpcgroup.membership.store.client import StoreClient

__all__ = ["group_identity", "group_secret", "has_group", "store_identity"]


def group_identity(client: StoreClient) -> str:
    """Random and the same for all: no two groups are taken for one, whatever keys they share with others."""
    return client.claim("group", new_token()[:12])


def store_identity(client: StoreClient) -> str:
    """Of what is kept in the store, whatever its name: a file or a server of the same name may be a new one."""
    return client.claim("rpcgroup/store", new_token()[:12])


def has_group(client: StoreClient) -> bool:
    """Whether somebody has met here."""
    return client.read("group") is not None


def group_secret(client: StoreClient) -> bytes:
    """Of the first who asks, then the same for all."""
    return client.claim("secret", new_token() + new_token()).encode()
