"""What one peer may read of this process's devices, and whether it can.

That it works is never assumed: two processes can have the same device and not be able to share it (another IPC
namespace, expandable segments). Each device is probed once per peer, in the direction of the transfers, with a small
tensor whose content the peer reads back; until that has come right, tensors go by the host's memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

import torch

from rpcgroup.cuda.ipc import Export, Ipc
from rpcgroup.cuda.runtime import Runtime
from rpcgroup.cuda.staging import SMALL, TRANSFER_PRIORITY

__all__ = ["Exports", "Probes", "answer_probe"]

PROBE_SIZE: Final = 32
"""Bytes."""


class Exports:
    """What one peer is to read of this process: kept until the peer says that it has, or is gone."""

    def __init__(self, ipc: Ipc, works: Callable[[torch.device], bool]) -> None:
        """`works` tells whether the peer can open memory of that device, see `Probes`."""
        self._ipc = ipc
        self._works = works
        self._lock = threading.Lock()  # guards _kept, _closed
        self._kept: dict[int, list[Export]] = {}
        """By transfer."""
        self._closed = False

    @property
    def transfers(self) -> int:
        """That the peer has not released."""
        return len(self._kept)

    def export(self, transfer_id: int, tensor: torch.Tensor) -> bytes | None:
        """What the peer opens; None where the tensor has to go by the host, or is so small that it had better."""
        if tensor.nbytes <= SMALL or not self._works(tensor.device):
            return None
        try:
            export = self._ipc.export(tensor)
        except Exception:
            return None  # memory of another allocator, or that came from another process
        with self._lock:
            if not self._closed:
                self._kept.setdefault(transfer_id, []).append(export)
                return export.blob
        export.end()
        return None

    def release(self, transfer_id: int) -> None:
        """The peer has read it, or cannot; or its message has not been sent."""
        with self._lock:
            exports = self._kept.pop(transfer_id, [])
        for export in exports:
            export.end()

    def close(self) -> None:
        """The peer is gone. Idempotent."""
        with self._lock:
            self._closed = True
        for transfer_id in list(self._kept):
            self.release(transfer_id)


class Probes:
    """Which devices' memory one peer can open. Each is probed once, when it is first asked for.

    `ask(blob)` sends a probe and returns the answer, or raises; `submit(job)` has a job done that may block.
    """

    def __init__(
        self,
        runtime: Runtime,
        ipc: Ipc,
        ask: Callable[[bytes], bytes],
        submit: Callable[[Callable[[], None]], object],
    ) -> None:
        self._runtime = runtime
        self._ipc = ipc
        self._ask = ask
        self._submit = submit
        self._lock = threading.Lock()  # guards that a device is probed once
        self._works: dict[torch.device, bool] = {}
        """False while it is being probed, too."""

    def works(self, device: torch.device) -> bool:
        """Does not block: False until it is known."""
        known = self._works.get(device)
        if known is None:
            with self._lock:
                if device in self._works:
                    return self._works[device]
                self._works[device] = False
            self._submit(lambda: self._probe(device))
            return False
        return known

    def _probe(self, device: torch.device) -> None:
        try:
            self._works[device] = self._reads_back(device)
        except Exception:
            pass  # whatever it is: by the host it goes always

    def _reads_back(self, device: torch.device) -> bool:
        runtime, content = self._runtime, os.urandom(PROBE_SIZE)
        pinned = runtime.pinned(PROBE_SIZE)
        runtime.host_memory(pinned)[:] = content
        stream = runtime.new_stream(device, TRANSFER_PRIORITY)
        with runtime.use([stream]):
            tensor = runtime.empty(PROBE_SIZE, device)
            runtime.copy(tensor, pinned)
            export = self._ipc.export(tensor)
        try:
            return self._ask(export.blob) == content
        finally:
            export.end()
            runtime.synchronize(runtime.record(stream))  # what it was written from is dropped here


def answer_probe(runtime: Runtime, ipc: Ipc, blob: bytes) -> bytes:
    """What is read there. Blocks until the device has done so; raises where it cannot be opened."""
    stream = runtime.new_stream(ipc.device_of(blob), TRANSFER_PRIORITY)
    with runtime.use([stream]):
        tensor, written = ipc.open(blob)
        if tensor.nbytes != PROBE_SIZE:
            raise ValueError(f"a probe has {tensor.nbytes} bytes, not {PROBE_SIZE}")
        runtime.wait(stream, written)
        pinned = runtime.pinned(PROBE_SIZE)
        runtime.copy(pinned, tensor)
        runtime.synchronize(runtime.record(stream))
        del tensor  # where it has been read on the current stream
    return bytes(runtime.host_memory(pinned))
