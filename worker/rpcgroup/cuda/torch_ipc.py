"""CUDA's shared memory between processes, by torch's public API and its reductions of tensors.

The devices of two processes are told apart by their UUIDs: `CUDA_VISIBLE_DEVICES` numbers them for each anew.

Source: PyTorch's notes on sharing CUDA tensors (`torch.multiprocessing`).
"""

from __future__ import annotations

import struct
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from rpcgroup.cuda.ipc import Export
from rpcgroup.cuda.runtime import Event

__all__ = ["TorchIpc"]

_FIELDS: Final = struct.Struct("<16sQQQQQHHH")
"""Device; offset and bytes of the tensor in its storage; bytes of that, and its offset in the allocation; place of the
reference counter; bytes of three handles that follow: of the allocation, of the file of counters, of the event."""
_SHARED_MEMORY: Final = Path("/dev/shm")


class TorchIpc:
    @cached_property
    def _indexes(self) -> dict[bytes, int]:
        # Not before it is needed: a process that has looked at its devices can use none in its forked children.
        return {_uuid(index): index for index in range(torch.cuda.device_count())}

    def export(self, tensor: torch.Tensor) -> Export:
        device = tensor.device
        whole = torch.empty(0, dtype=torch.uint8, device=device).set_(tensor.untyped_storage())
        # Another storage of the same memory, for torch wraps one that is shared once more each time, for as long as
        # it lives: a parameter would become slower to share, and its end deeper, with every message.
        shared = from_dlpack(to_dlpack(whole))
        _, (*_, handle, size, offset, _, counters, counter, _, _) = reduce_tensor(shared)  # type: ignore[no-untyped-call]
        event: Any = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        ready: bytes = event.ipc_handle()
        blob = b"".join(
            (
                _FIELDS.pack(
                    _uuid(device.index),
                    *(tensor.storage_offset(), tensor.nbytes, size, offset, counter),
                    *map(len, (handle, counters, ready)),
                ),
                *(handle, counters, ready),
            )
        )

        def end() -> None:
            # Instead of an importer that has not opened it, or has died; where one has, torch takes it as well.
            torch.UntypedStorage._release_ipc_counter_cuda(counters, counter)

        return Export(blob, (shared, event), end)

    def device_of(self, blob: bytes) -> torch.device:
        uuid = blob[:16]
        index = self._indexes.get(uuid)
        if index is None:
            raise ValueError(f"the device {UUID(bytes=uuid)} is none of this process")
        return torch.device("cuda", index)

    def open(self, blob: bytes) -> tuple[torch.Tensor, Event]:
        device = self.device_of(blob)
        _, start, length, size, offset, counter, *lengths = _FIELDS.unpack_from(blob)
        handle, counters, ready = _split(blob[_FIELDS.size :], lengths)
        if not (_SHARED_MEMORY / counters.decode().lstrip("/")).exists():
            raise RuntimeError(
                "the exporter's count of references cannot be reached: its /dev/shm is another one"
            )
        event: Event = torch.cuda.Event.from_ipc_handle(device, ready)  # type: ignore[no-untyped-call]
        whole = rebuild_cuda_tensor(  # type: ignore[no-untyped-call]
            *(torch.Tensor, (size,), (1,), 0, torch.storage.TypedStorage, torch.uint8),
            *(device.index, handle, size, offset, False, counters, counter),
            *(b"", False),  # the event is ours
        )
        return whole[start : start + length], event


def _uuid(index: int) -> bytes:
    return UUID(str(torch.cuda.get_device_properties(index).uuid)).bytes


def _split(data: bytes, lengths: list[int]) -> list[bytes]:
    parts = []
    for length in lengths:
        parts.append(data[:length])
        data = data[length:]
    return parts
