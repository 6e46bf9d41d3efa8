"""CUDA's face in Python over a recording device, so that programs made for CUDA run without one, unchanged.

    device = emulate_cuda(4)  # before whatever looks for CUDA is imported; for the rest of the process
    x = torch.ones(2, device="cuda:1")
    ...
    device.check()

The product's own implementation for CUDA runs over it, with what only the recording device can do in its place: see
`EmulatedCuda`. torch's C++ knows of no device: sparse tensors, collectives and DDP, TorchScript, the profiler's device
times, and random generators of the devices are not emulated.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from rpcgroup.cuda.ipc import Ipc
from rpcgroup.cuda.runtime import use_runtime
from rpcgroup.cuda.torch_cuda import TorchCuda
from rpcgroup.testing.device_tensor import DeviceTensor
from rpcgroup.testing.emulated_ipc import EmulatedIpc
from rpcgroup.testing.emulated_streams import Event, Stream
from rpcgroup.testing.emulated_tensors import emulate_tensors
from rpcgroup.testing.recording_device import RecordingDevice

__all__ = ["CYCLES_PER_SECOND", "EmulatedCuda", "emulate_cuda"]

CYCLES_PER_SECOND = 1e10
"""Of `torch.cuda._sleep`: ten times as fast as a GPU, for tests sleep long."""
_PROPERTIES = SimpleNamespace(name="an emulated device", major=5, minor=0, total_memory=1 << 34)
"""Of each device: one of an early architecture, for which nothing compiles kernels."""
_POOL = 32
"""Streams of each priority: ATen's number."""


class EmulatedCuda(TorchCuda):
    """The `Runtime` of CUDA, save for memory that others have a part in: pinned, and shared between processes."""

    tensor_type: type[torch.Tensor] = DeviceTensor

    def __init__(self, recorder: RecordingDevice) -> None:
        self._recorder = recorder

    def ipc(self) -> Ipc:
        return EmulatedIpc(self._recorder)

    def pinned(self, size: int) -> torch.Tensor:
        return self._recorder.pinned(size)

    def host_memory(self, pinned: torch.Tensor) -> memoryview:
        return self._recorder.host_memory(pinned)


def emulate_cuda(device_count: int) -> RecordingDevice:
    """For the rest of the process."""
    recorder = RecordingDevice(device_count, _POOL)
    Stream.recorder = Event.recorder = recorder
    for name, value in vars(_Face(recorder)).items():
        setattr(torch.cuda, name, value)
    torch.cuda.Stream = torch.cuda.streams.Stream = Stream  # type: ignore[assignment, misc]
    torch.cuda.Event = torch.cuda.streams.Event = torch.Event = Event  # type: ignore[assignment, misc]
    torch.accelerator.is_available = lambda: True
    torch.accelerator.device_count = lambda: device_count
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    emulate_tensors(recorder)
    use_runtime(EmulatedCuda(recorder))
    return recorder


class _Face:
    """Its attributes are `torch.cuda`'s."""

    def __init__(self, recorder: RecordingDevice) -> None:
        def exchange_device(index: int) -> int:
            before = recorder.current_device
            if index >= 0:
                recorder.current_device = index
            return before if index >= 0 else -1

        def set_device(device: Any) -> None:
            recorder.current_device = exact(device).index

        def exact(device: Any) -> torch.device:
            return recorder.exact("cuda" if device is None else device)

        def set_stream(stream: Stream | None) -> None:
            if stream is not None:
                streams = recorder.current_streams
                streams.put({**streams.all(), stream.device: stream.recorded})
                recorder.current_device = stream.device_index

        def synchronize(device: Any = None) -> None:
            recorder.drain_device(exact(device))

        def sleep(cycles: int) -> None:
            recorder.sleep(recorder.current_stream(torch.device("cuda")), cycles / CYCLES_PER_SECOND)

        self.is_available = lambda: True
        self.device_count = recorder.device_count
        self.init = self._lazy_init = lambda: None
        self.current_device = lambda: recorder.current_device
        self.set_device = set_device
        self._exchange_device = self._maybe_exchange_device = exchange_device
        self.set_stream = set_stream
        self.current_stream = lambda device=None: Stream.of(recorder.current_stream(exact(device)))
        self.default_stream = lambda device=None: Stream.of(recorder.default_stream(exact(device)))
        self.get_device_properties = lambda device=None: _PROPERTIES
        self.synchronize = synchronize
        self._sleep = sleep
