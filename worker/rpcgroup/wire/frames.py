"""The frame: a fixed header, a body, and buffers that follow the body without a copy.

    header (28 bytes, little endian)
        u32 length of the body      u8 kind (MessageType)   u8 flags   u16 number of buffers
        u64 id                      u32 function            u32 timeout in ms, 0 = none
        u32 frames received so far from the peer, modulo 2**32: acknowledges them
    body     begins with one u64 for each buffer: its size
    buffers  raw bytes, one after the other

A reader owns the receive memory and turns arriving bytes into frames; it never sees a socket.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from rpcgroup.errors import RemoteProtocolError

__all__ = [
    "HEADER",
    "HEADER_SIZE",
    "JOINED_LIMIT",
    "MAX_BODY",
    "MAX_MESSAGE",
    "Body",
    "Frame",
    "FrameReader",
    "OutFrame",
    "pack_frame",
]

HEADER: Final = struct.Struct("<IBBHQIII")
HEADER_SIZE: Final = HEADER.size

MAX_BODY: Final = 1 << 30
"""Bytes. A body is one pickle: more than this is a mistake, tensors and arrays travel as buffers."""
MAX_MESSAGE: Final = 64 << 30
"""Bytes of one frame with its buffers: beyond any host's memory for one call, it is garbage."""
JOINED_LIMIT: Final = 16 << 10
"""Bytes of a body up to which a frame is made one piece, to be joined with others for one write."""
BUFFER_SIZE: Final = 1 << 16
"""Bytes read at once; a body that does not fit is received into memory of its own."""

_COUNTS: Final = [struct.Struct(f"<{n}Q") for n in range(17)]
_pack_header = HEADER.pack
_unpack_header = HEADER.unpack_from


class Body(NamedTuple):
    """What follows a header."""

    data: bytes | bytearray
    start: int
    """Where the sizes of the buffers end."""
    buffers: list[Any] | None
    events: Any = None
    """Of a message whose tensors came onto devices: the `rpcgroup.cuda.events.Events` of what came."""


Frame = tuple[int, int, int, int, int, Body | None]
"""As it came from the wire: kind, flags, id, function, timeout in ms, body.

A plain tuple, to be unpacked: one is made for each message, and a named one takes four times as long.
"""

OutFrame = bytes | list[bytes | memoryview]
"""As it goes to the wire: a small one in one piece, a larger one in several."""


def sizes_struct(count: int) -> struct.Struct:
    """The layout of the size table of `count` buffers."""
    return _COUNTS[count] if count < len(_COUNTS) else struct.Struct(f"<{count}Q")


def pack_frame(
    kind: int,
    flags: int,
    id: int,
    function: int,
    timeout_ms: int,
    ack: int,
    body: bytes = b"",
    buffers: list[memoryview] | None = None,
) -> OutFrame:
    """A frame ready to be written."""
    if not buffers:
        header = _pack_header(len(body), kind, flags, 0, id, function, timeout_ms, ack & 0xFFFFFFFF)
        return header + body if len(body) <= JOINED_LIMIT else [header, body]
    count = len(buffers)
    sizes = sizes_struct(count)
    head = _pack_header(
        sizes.size + len(body), kind, flags, count, id, function, timeout_ms, ack & 0xFFFFFFFF
    )
    return [head + sizes.pack(*[b.nbytes for b in buffers]) + body, *buffers]


class FrameReader:
    """Receives bytes into `target()`, told of them by `advance(n)`, yields `frames`.

    Not thread-safe: whoever holds the channel's read lock uses it. `received` counts the complete frames that
    are acknowledged to the peer, `ack` is what the peer has acknowledged last. Raises `RemoteProtocolError`
    for what no peer of this protocol sends; the reader is useless afterwards.
    """

    __slots__ = (
        "_allocate",
        "_allocators",
        "_buffer",
        "_end",
        "_header",
        "_max_body",
        "_max_message",
        "_partial",
        "_sinks",
        "_view",
        "ack",
        "frames",
        "large_bytes",
        "received",
    )

    def __init__(
        self,
        allocate: Callable[[int], Any] = bytearray,
        max_body: int = MAX_BODY,
        max_message: int = MAX_MESSAGE,
        allocators: Mapping[int, Callable[[int], Any]] | None = None,
    ) -> None:
        """`allocate(size)` gives the memory of a buffer, `allocators` that of buffers of certain kinds of frames."""
        self._allocate = allocate
        self._allocators = allocators or {}
        self._max_body = max_body
        self._max_message = max_message
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self.frames: deque[Frame] = deque()
        self.received = 0
        self.ack = 0
        self.large_bytes = 0
        self.reset()

    def reset(self) -> None:
        """Forget a half-received frame: the connection it came by is gone, and the peer will send it again."""
        self._end = 0
        self._sinks: list[memoryview] = []
        self._header: tuple[int, ...] | None = None
        self._partial: tuple[bytearray, list[Any] | None] | None = None

    @property
    def incomplete(self) -> bool:
        """The beginning of a frame is here, and its end is not."""
        return bool(self._sinks) or self._end > 0

    @property
    def filling(self) -> bool:
        """The next bytes belong into a body or buffer with memory of its own."""
        return bool(self._sinks)

    def target(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._sinks:
            return self._sinks[0]
        return self._view[self._end :] if self._end else self._view

    def advance(self, n: int) -> None:
        """`n` bytes have arrived in `target()`."""
        if self._sinks:
            self._fill(n)
            return
        self._end += n
        self._parse()

    def _parse(self) -> None:
        buffer, end = self._buffer, self._end
        append = self.frames.append
        start = received = 0
        while end - start >= HEADER_SIZE:
            header = _unpack_header(buffer, start)
            length, kind, flags, count, id, function, timeout_ms, ack = header
            body = None
            stop = start + HEADER_SIZE
            if length or count:
                stop += length
                if length > self._max_body:
                    raise RemoteProtocolError(f"frame of {length} bytes is over the cap of {self._max_body}")
                if stop > end:
                    if HEADER_SIZE + length > BUFFER_SIZE:
                        start = self._begin_body(header, start + HEADER_SIZE, end)
                    break
                data = bytearray(self._view[stop - length : stop])
                if count:
                    self.received += received
                    received = 0
                    start = self._begin_buffers(header, data, stop, end)
                    if self._sinks:
                        break
                    continue
                body = Body(data, 0, None)
            self.ack = ack
            if kind:
                received += 1
                append((kind, flags, id, function, timeout_ms, body))
            start = stop
        self.received += received
        if start >= end:
            self._end = 0
        elif start:
            # A shift of what is left, at most one incomplete small frame: cheaper than a ring's wrap-around.
            rest = end - start
            buffer[:rest] = buffer[start:end]
            self._end = rest

    def _begin_body(self, header: tuple[int, ...], start: int, end: int) -> int:
        """A body larger than the buffer goes to memory of its own; returns where the buffer is used up."""
        body = bytearray(header[0])
        have = end - start
        body[:have] = self._view[start:end]
        self._header = header
        self._partial = (body, None)
        self._sinks = [memoryview(body)[have:]]
        return end

    def _begin_buffers(self, header: tuple[int, ...], body: bytearray, start: int, end: int) -> int:
        """Allocate the buffers of a frame and copy what has come of them; returns where that ends."""
        count = header[3]
        table = sizes_struct(count)
        if table.size > len(body):
            raise RemoteProtocolError(f"frame says {count} buffers, its body has room for the sizes of fewer")
        sizes = table.unpack_from(body)
        if sum(sizes) > self._max_message:
            raise RemoteProtocolError(
                f"buffers of {sum(sizes)} bytes are over the cap of {self._max_message}"
            )
        try:
            allocate = self._allocators.get(header[1], self._allocate)
            buffers = [allocate(size) for size in sizes]
        except (MemoryError, OSError) as exc:  # not the connection's fault: again would fail again
            raise RemoteProtocolError(f"no memory for buffers of {sum(sizes)} bytes: {exc}") from exc
        sinks = []
        for buffer in buffers:
            sink = memoryview(buffer).cast("B")
            have = min(len(sink), end - start)
            sink[:have] = self._view[start : start + have]
            start += have
            if have < len(sink):
                sinks.append(sink[have:])
        self._header = header
        self._partial = (body, buffers)
        self._sinks = sinks
        if not sinks:
            self._complete()
        return start

    def _fill(self, n: int) -> None:
        sinks = self._sinks
        if n < len(sinks[0]):
            sinks[0] = sinks[0][n:]
            return
        del sinks[0]
        if sinks:
            return
        assert self._header is not None and self._partial is not None
        self._end = 0
        body, buffers = self._partial
        if buffers is None and self._header[3]:
            self._begin_buffers(self._header, body, 0, 0)
        else:
            self._complete()

    def _complete(self) -> None:
        assert self._header is not None and self._partial is not None
        _, kind, flags, count, id, function, timeout_ms, ack = self._header
        body, buffers = self._partial
        self._header = self._partial = None
        if buffers:
            self.large_bytes += sum(map(len, buffers))
        self.ack = ack
        self.received += 1
        self.frames.append((kind, flags, id, function, timeout_ms, Body(body, 8 * count, buffers)))
