"""CUDA's shared memory between processes, by torch's public API and what its reductions of tensors are made of.

The devices of two processes are told apart by their UUIDs: `CUDA_VISIBLE_DEVICES` numbers them for each anew.

Source: PyTorch's notes on sharing CUDA tensors (`torch.multiprocessing`), and `torch/csrc/CudaIPCTypes.cpp`.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from rpcgroup.cuda.failed import keep, keep_in_children
from rpcgroup.cuda.ipc import Export
from rpcgroup.cuda.runtime import Event

__all__ = ["TorchIpc"]

MAPPED: Final = 32
"""Allocations of one peer that stay mapped; torch's own backend keeps all. What the peer gives back to the device
meanwhile is free for others once it is not mapped any more."""

_FIELDS: Final = struct.Struct("<16sQQII")
"""Device; place of the tensor in its allocation, and bytes; bytes of two handles that follow: of the allocation, of
the event."""
_NO_COUNTER: Final = b"/rpcgroup-counts-at-the-exporter"
"""The name of no file. An importer of torch's counts the exporter's references down when it drops what it has mapped,
and so does `Export.end`; a count below 0 is taken for a large one, and the memory is never given back."""


class TorchIpc:
    def __init__(self) -> None:
        keep_in_children(self)
        self._closed = False
        self._mapped: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        """Allocations of the peer by their handles, that used last at the end. To map one takes longer than most
        copies, and to unmap it may wait for the whole device, with the interpreter's lock held."""

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
        event: Any = torch.cuda.Event(interprocess=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        ready: bytes = event.ipc_handle()
        # Last: what is shared has a reference more, which only `end` takes away.
        _, (*_, handle, _, offset, _, counters, counter, _, _) = reduce_tensor(shared)  # type: ignore[no-untyped-call]

        def end() -> None:
            torch.UntypedStorage._release_ipc_counter_cuda(counters, counter)

        place = offset + tensor.storage_offset()
        fields = _FIELDS.pack(_uuid(device.index), place, tensor.nbytes, len(handle), len(ready))
        return Export(fields + handle + ready, (shared, event), end)

    def device_of(self, blob: bytes) -> torch.device:
        uuid = blob[:16]
        index = self._indexes.get(uuid)
        if index is None:
            raise ValueError(f"the device {UUID(bytes=uuid)} is none of this process")
        return torch.device("cuda", index)

    def open(self, blob: bytes) -> tuple[torch.Tensor, Event]:
        device = self.device_of(blob)
        _, place, length, handle_size, event_size = _FIELDS.unpack_from(blob)
        handle = blob[_FIELDS.size : _FIELDS.size + handle_size]
        ready = blob[_FIELDS.size + handle_size :][:event_size]
        event: Event = torch.cuda.Event.from_ipc_handle(device, ready)  # type: ignore[no-untyped-call]
        return self._map(device, handle, place + length)[place : place + length], event

    def _map(self, device: torch.device, handle: bytes, end: int) -> torch.Tensor:
        """An allocation of the peer, at least its first `end` bytes."""
        # Without a lock: what two threads map at once, torch maps once.
        mapped = self._mapped.pop(handle, None)
        if mapped is None or mapped.nbytes < end:
            # How long an allocation is its handle does not say; one that is mapped already is not mapped again.
            storage = torch.UntypedStorage._new_shared_cuda(
                device.index, handle, end, 0, _NO_COUNTER, 0, b"", False
            )
            mapped = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        self._mapped[handle] = mapped
        if self._closed:  # looked at after it could be seen: one of the two unmaps it
            self.close()
        _unmap([self._mapped.popitem(last=False)[1] for _ in range(len(self._mapped) - MAPPED)])
        return mapped

    def close(self) -> None:
        self._closed = True
        mapped, self._mapped = self._mapped, OrderedDict()
        _unmap([mapped.popitem()[1] for _ in range(len(mapped))])


def _unmap(mapped: list[torch.Tensor]) -> None:
    """Those that nobody reads any more; the others when they have been read."""
    while mapped:
        try:
            stream: Any = torch.cuda.Stream(mapped[-1].device)  # type: ignore[no-untyped-call]
            stream.synchronize()
        except Exception:
            keep(mapped)  # the device has failed, and torch would end the process
            return
        with torch.cuda.stream(stream):  # torch waits for the current one, which may have much to do
            mapped.pop()


def _uuid(index: int) -> bytes:
    return UUID(str(torch.cuda.get_device_properties(index).uuid)).bytes
