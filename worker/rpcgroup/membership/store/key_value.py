"""The group's small shared values over a c10d store."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

from rpcgroup.errors import RendezvousError
from rpcgroup.membership.record import new_token
from rpcgroup.membership.store.client import StoreClient

__all__ = ["StoreKeyValue"]

_DELETED: Final = "-"
"""Begins what stands in the place of a value: not every store can delete a key."""


class StoreKeyValue:
    """The `KeyValue` interface, but for `watch`: a store tells of no change."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client

    def get(self, key: str) -> bytes | None:
        return _decode(self._client.read(_path(key)))

    def put(self, key: str, value: bytes) -> None:
        self._client.put(_path(key), _encode(value))

    def delete(self, key: str) -> bool:
        while True:
            text = self._client.read(_path(key))
            if text is None or text.startswith(_DELETED):
                return False
            if self._client.replace(_path(key), text, _DELETED + new_token()):
                return True

    def watch(self, prefix: str, callback: Callable[[str, bytes | None], None]) -> Callable[[], None]:
        """Raises `RendezvousError`."""
        raise RendezvousError("a c10d store tells of no change: look with kv.get, or meet in etcd to watch")


def _path(key: str) -> str:
    return f"kv/{key}"


def _encode(value: bytes) -> str:
    return "=" + base64.b64encode(value).decode()


def _decode(text: str | None) -> bytes | None:
    return None if text is None or text.startswith(_DELETED) else base64.b64decode(text[1:])
