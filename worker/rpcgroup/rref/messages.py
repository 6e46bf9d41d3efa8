"""The three control messages, each about any number of forks, and their sending until they are answered."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.rref.ids import ForkId, RRefId
from rpcgroup.wire.messages import MessageType

__all__ = ["Item", "Message", "decode_fetch", "decode_items", "encode_fetch", "encode_items"]

_ITEM: Final = struct.Struct("<4q?")
_FETCH: Final = struct.Struct("<2q")


class Item(NamedTuple):
    """What a control message says of one fork."""

    rref_id: RRefId
    fork_id: ForkId
    in_doubt: bool = False
    """USER_DELETE: an earlier message that registers the fork may still be under way."""


class Message:
    """One control message until it is answered; sent again unchanged. Identity is its equality."""

    __slots__ = ("attempts", "items", "kind", "to")

    def __init__(self, to: int, kind: MessageType, items: list[Item]) -> None:
        self.to = to
        self.kind = kind
        self.items = items
        self.attempts = 0
        """Those that ended without an answer."""


def encode_items(items: Iterable[Item]) -> bytes:
    return b"".join([_ITEM.pack(*rref_id, *fork_id, in_doubt) for rref_id, fork_id, in_doubt in items])


def decode_items(payload: bytes) -> list[Item]:
    """Raises `RemoteProtocolError` for what `encode_items` did not make."""
    try:
        return [
            Item(RRefId(rref_worker, rref_local), ForkId(fork_worker, fork_local), in_doubt)
            for rref_worker, rref_local, fork_worker, fork_local, in_doubt in _ITEM.iter_unpack(payload)
        ]
    except struct.error as exc:
        raise RemoteProtocolError(f"not a control message of references: {len(payload)} bytes") from exc


def encode_fetch(rref_id: RRefId) -> bytes:
    return _FETCH.pack(*rref_id)


def decode_fetch(payload: bytes) -> RRefId:
    """Raises `RemoteProtocolError` for what `encode_fetch` did not make."""
    try:
        return RRefId(*_FETCH.unpack(payload))
    except struct.error as exc:
        raise RemoteProtocolError(f"not a fetch of a reference: {len(payload)} bytes") from exc
