"""The table of a message's tensors on devices, at the beginning of the body of a frame whose kind has `ON_DEVICE`.

    head        u64 transfer    u32 number of payloads      u32 0
    per payload u64 bytes       u16 device   u8 path   u8 0 u32 bytes of the blob, then the blob
    padding     to 16 bytes, so that the tensors in the body behind it stay as aligned as they are without it

The bytes of a HOST payload follow the frame as chunks of `CHUNK` bytes, the last one shorter. Those of an IPC payload
do not travel: its blob says where they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.wire.frames import MAX_MESSAGE

__all__ = [
    "CHUNK",
    "HOST",
    "IPC",
    "ON_DEVICE",
    "Payload",
    "chunk_size",
    "count_chunks",
    "pack_payloads",
    "read_payloads",
]

ON_DEVICE: Final = 0x80
"""Bit of a frame's kind: its body begins with this table. So such a frame has a handler of its own."""
CHUNK: Final = 4 << 20
"""Bytes. Part of the protocol: a chunk says its number, and not where it begins."""

HOST: Final = 0
"""Path: through the hosts' memory and the connection."""
IPC: Final = 1
"""Path: the receiver maps the sender's memory."""

_HEAD: Final = struct.Struct("<QII")
_ENTRY: Final = struct.Struct("<QHBBI")
_ALIGNMENT: Final = 16


class Payload(NamedTuple):
    """The data of one tensor."""

    size: int
    """Bytes."""
    device: int
    """Index at the receiver."""
    path: int = HOST
    blob: bytes = b""
    """Of an IPC payload: what its receiver opens."""


def count_chunks(size: int, chunk: int = CHUNK) -> int:
    return -(-size // chunk)


def chunk_size(size: int, place: int, chunk: int = CHUNK) -> int:
    """Bytes of a chunk of a payload of `size` bytes."""
    return min(chunk, size - place * chunk)


def pack_payloads(transfer_id: int, payloads: Sequence[Payload]) -> bytes:
    parts = [_HEAD.pack(transfer_id, len(payloads), 0)]
    length = _HEAD.size
    for size, device, path, blob in payloads:
        parts += (_ENTRY.pack(size, device, path, 0, len(blob)), blob)
        length += _ENTRY.size + len(blob)
    parts.append(bytes(-length % _ALIGNMENT))
    return b"".join(parts)


def read_payloads(
    data: bytes | bytearray, start: int, max_size: int = MAX_MESSAGE
) -> tuple[int, list[Payload], int]:
    """The transfer's id, its payloads, and where the table that begins at `start` ends.

    `max_size` is the cap on the bytes of all payloads together. Raises `RemoteProtocolError`.
    """
    stop = len(data)
    if stop - start < _HEAD.size:
        raise RemoteProtocolError("a message says that it has payloads, and has no room for their table")
    transfer_id, count, reserved = _HEAD.unpack_from(data, start)
    offset = start + _HEAD.size
    if reserved or count * _ENTRY.size > stop - offset:
        raise RemoteProtocolError(f"a message says {count} payloads, and has room for the entries of fewer")
    payloads = []
    total = 0
    for _ in range(count):
        if stop - offset < _ENTRY.size:
            raise RemoteProtocolError("a table of payloads reaches beyond its message")
        size, device, path, reserved, blob_size = _ENTRY.unpack_from(data, offset)
        offset += _ENTRY.size
        if reserved or path > IPC or (path == HOST and blob_size):
            raise RemoteProtocolError(f"a payload says to come by path {path}, with {blob_size} bytes for it")
        if blob_size > stop - offset:
            raise RemoteProtocolError("a payload's blob reaches beyond its message")
        payloads.append(Payload(size, device, path, bytes(data[offset : offset + blob_size])))
        offset += blob_size
        total += size
    if total > max_size:
        raise RemoteProtocolError(f"payloads of {total} bytes are over the cap of {max_size}")
    offset += (start - offset) % _ALIGNMENT
    if offset > stop:
        raise RemoteProtocolError("a table of payloads is not padded")
    return transfer_id, payloads, offset
