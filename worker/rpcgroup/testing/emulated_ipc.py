"""Shared memory between processes with emulated devices: what is exported is copied into memory of the host that
another process of this host can open.

The importer has to wait for the event that comes with it, as with CUDA; and until the export has ended, the exporter
must neither free nor overwrite the tensor, since the other process reads it.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

import torch

from rpcgroup.cuda.ipc import Export
from rpcgroup.testing.device_tensor import DeviceTensor
from rpcgroup.testing.emulated_streams import Event
from rpcgroup.testing.recording_device import RecordingDevice

__all__ = ["EmulatedIpc"]

_BLOB: Final = struct.Struct("<iiiqd")
"""Device, process, descriptor, bytes; when it has been written."""


class EmulatedIpc:
    """An `Ipc`."""

    def __init__(self, recorder: RecordingDevice) -> None:
        self._recorder = recorder

    def export(self, tensor: torch.Tensor) -> Export:
        assert isinstance(tensor, DeviceTensor)
        recorder, size = self._recorder, tensor.nbytes
        event = recorder.record(recorder.current_stream(tensor.device))
        file = os.memfd_create("rpcgroup-emulated-device")
        os.truncate(file, size)
        torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8).copy_(tensor.wrapped)
        read = recorder.read_elsewhere(tensor, event)

        def end() -> None:
            os.close(file)
            read()

        blob = _BLOB.pack(tensor.device.index, os.getpid(), file, size, event.time)
        return Export(blob, tensor, end)

    def device_of(self, blob: bytes) -> torch.device:
        index = _BLOB.unpack(blob)[0]
        if index >= self._recorder.device_count():
            raise ValueError(f"the device {index} is none of this process")
        return torch.device("cuda", index)

    def open(self, blob: bytes) -> tuple[torch.Tensor, Event]:
        _, process, descriptor, size, time = _BLOB.unpack(blob)
        file = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
        try:
            memory = mmap.mmap(file, size)
        finally:
            os.close(file)
        inner = torch.frombuffer(memory, dtype=torch.uint8)
        event = Event()
        tensor, event.recorded = self._recorder.written_elsewhere(inner, self.device_of(blob), time)
        return tensor, event

    def close(self) -> None:
        pass
