"""Tensors of one message that leave their devices: through pinned memory, in chunks, onto a connection.

The copy of what comes next is under way while the last is being written. Small payloads share one block and one wait.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import torch

from rpcgroup.cuda.failed import keep
from rpcgroup.cuda.runtime import Event, Runtime, Stream
from rpcgroup.cuda.sharing import Exports
from rpcgroup.cuda.staging import SMALL, TRANSFER_PRIORITY, PinnedPool, Share, Staging
from rpcgroup.wire.payloads import IPC, Payload, chunk_size, count_chunks

__all__ = ["STAGING_TIMEOUT", "Departure", "Failed", "PutChunk", "prepare"]

STAGING_TIMEOUT: Final = 60.0
"""Seconds. Longer than a broken connection keeps what it has not delivered, which is then given back."""
ALIGNMENT: Final = 64
"""Bytes, of what shares a block."""

AHEAD: Final = 2
"""Blocks: one is written while the copy into the other is under way."""

PutChunk = Callable[[int, int, int, memoryview], None]
"""Write a chunk: transfer, index of the payload, place of the chunk in it, bytes. May block. The bytes stay as they
are for as long as the memoryview, or one made of it, is referred to."""
Failed = Callable[[int, Exception], None]
"""Told once of the transfer that failed."""


class Piece(NamedTuple):
    """A chunk and where it is in its block."""

    payload: int
    place: int
    start: int
    size: int
    at: int


class _Load(NamedTuple):
    """A block on its way from the device."""

    pieces: list[Piece]
    staging: Staging
    copied: Event


def pack_blocks(sizes: Iterable[tuple[int, int]], chunk: int) -> Iterator[list[Piece]]:
    """The chunks of the payloads, each (index, bytes), in order, as many to a block of `chunk` bytes as it holds."""
    block: list[Piece] = []
    end = 0
    for index, size in sizes:
        for place in range(count_chunks(size, chunk)):
            length = chunk_size(size, place, chunk)
            at = -(-end // ALIGNMENT) * ALIGNMENT
            if at + length > chunk:
                yield block
                block, at = [], 0
            block.append(Piece(index, place, place * chunk, length, at))
            end = at + length
    if block:
        yield block


def prepare(
    runtime: Runtime,
    pool: PinnedPool | Share,
    transfer_id: int,
    tensors: Sequence[tuple[torch.Tensor, int]],
    exports: Exports | None = None,
) -> tuple[list[Payload], Departure]:
    """The table for flat tensors of uint8, each for the receiver's device of that index, and what has to depart.

    In the thread whose current streams have written them. `exports` is for a receiver that may share memory.
    Raises what a device has failed with.
    """
    payloads = []
    by_host = {}
    for place, (tensor, device) in enumerate(tensors):
        blob = exports.export(transfer_id, tensor) if exports is not None else None
        if blob is None:
            by_host[place] = tensor
            payloads.append(Payload(tensor.nbytes, device))
        else:
            payloads.append(Payload(tensor.nbytes, device, IPC, blob))
    try:
        return payloads, Departure(runtime, pool, transfer_id, by_host)
    except BaseException:
        if exports is not None:
            exports.release(transfer_id)  # the message is not sent
        raise


class Departure:
    """Made in the thread whose current streams have written the tensors, and `run` by one that may block.

    `tensors` are flat, of uint8, by their places in the table of payloads. They are kept until they have been copied.
    """

    def __init__(
        self, runtime: Runtime, pool: PinnedPool | Share, transfer_id: int, tensors: dict[int, torch.Tensor]
    ) -> None:
        self.transfer_id = transfer_id
        self._runtime = runtime
        self._pool = pool
        self._tensors = {index: tensor for index, tensor in tensors.items() if tensor.nbytes}
        self._streams: dict[torch.device, tuple[Stream, Event]] = {}
        """Of each device: where it is copied, and the event behind what was enqueued before."""
        for tensor in self._tensors.values():
            if tensor.device not in self._streams:
                self._streams[tensor.device] = self._branch(tensor.device)
            runtime.retain(tensor, self._streams[tensor.device][0])

    def _branch(self, device: torch.device) -> tuple[Stream, Event]:
        runtime = self._runtime
        stream = runtime.new_stream(device, TRANSFER_PRIORITY)
        written = runtime.record(runtime.current_stream(device))
        runtime.wait(stream, written)
        return stream, written

    def run(self, put_chunk: PutChunk, failed: Failed, timeout: float = STAGING_TIMEOUT) -> None:
        """Put every chunk on the wire. `timeout` bounds each wait for pinned memory, in seconds."""
        try:
            for device in self._streams:
                self._send(device, put_chunk, timeout)
        except Exception as exc:
            traceback.clear_frames(exc.__traceback__)  # they refer to tensors and to staging
            failed(self.transfer_id, exc)
        finally:
            self._tensors.clear()

    def _send(self, device: torch.device, put_chunk: PutChunk, timeout: float) -> None:
        stream, written = self._streams[device]
        sizes = [(index, tensor.nbytes) for index, tensor in self._tensors.items() if tensor.device == device]
        under_way: deque[_Load] = deque()  # no name besides: what has been put must not keep its block
        try:
            # Before any block is taken: those of others may be ready to go while this waits behind a kernel.
            self._runtime.synchronize(written)
            for block in pack_blocks(sizes, self._pool.chunk):
                staging = self._pool.try_take()
                if staging is None:
                    self._put_all(under_way, put_chunk)
                    staging = self._take(timeout)
                under_way.append(self._load(block, staging, stream))
                del staging
                if len(under_way) == AHEAD:
                    self._put(under_way.popleft(), put_chunk)
            self._put_all(under_way, put_chunk)
        except BaseException:
            self._settle(stream)
            raise

    def _take(self, timeout: float) -> Staging:
        staging = self._pool.take(timeout)
        if staging is None:
            raise TimeoutError(
                f"a tensor was not sent: no pinned memory came free within {timeout} s. {self._pool.blocks} blocks of "
                f"{self._pool.chunk} bytes are in use until the receiver acknowledges what was sent"
            )
        return staging

    def _load(self, block: list[Piece], staging: Staging, stream: Stream) -> _Load:
        runtime, pinned = self._runtime, staging.pinned
        with runtime.use([stream]):
            for index, _, start, size, at in block:
                runtime.copy(pinned[at : at + size], self._tensors[index][start : start + size])
        return _Load(block, staging, runtime.record(stream))

    def _put(self, load: _Load, put_chunk: PutChunk) -> None:
        self._runtime.synchronize(load.copied)
        last = load.pieces[-1]
        used = last.at + last.size
        memory = load.staging.memory(used)
        if used <= SMALL:
            memory = memoryview(bytes(memory))
        for index, place, start, size, at in load.pieces:
            if start + size == self._tensors[index].nbytes:
                del self._tensors[index]
            put_chunk(self.transfer_id, index, place, memory[at : at + size])

    def _put_all(self, loads: deque[_Load], put_chunk: PutChunk) -> None:
        while loads:
            self._put(loads.popleft(), put_chunk)

    def _settle(self, stream: Stream) -> None:
        """Wait for the copies under way: their blocks will be another's."""
        try:
            self._runtime.synchronize(self._runtime.record(stream))
        except Exception:
            keep(list(self._tensors.values()))  # the device has failed, and copies no more
