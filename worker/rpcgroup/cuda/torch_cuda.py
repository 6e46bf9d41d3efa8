"""CUDA's streams and events, by torch's public API."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from rpcgroup.cuda.ipc import Ipc
from rpcgroup.cuda.runtime import Event, Stream

__all__ = ["TorchCuda"]


class TorchCuda:
    tensor_type = torch.Tensor

    def device_count(self) -> int:
        return torch.cuda.device_count()

    def ipc(self) -> Ipc:
        from rpcgroup.cuda.torch_ipc import TorchIpc

        return TorchIpc()

    def current_stream(self, device: torch.device) -> Stream:
        return torch.cuda.current_stream(device)

    def new_stream(self, device: torch.device, priority: int = 0) -> Stream:
        stream: Stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
        return stream

    @contextmanager
    def use(self, streams: Iterable[Stream]) -> Iterator[None]:
        device = torch.cuda.current_device()
        with ExitStack() as used:
            for stream in streams:
                used.enter_context(torch.cuda.stream(stream))  # type: ignore[arg-type]
            used.enter_context(torch.cuda.device(device))  # each stream has made its own the current one
            yield

    def record(self, stream: Stream) -> Event:
        # Blocking: who waits for it leaves the processor to others, instead of asking again and again.
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        stream.wait_event(event)  # type: ignore[attr-defined]

    def synchronize(self, event: Event) -> None:
        event.synchronize()

    def is_done(self, event: Event) -> bool:
        done: bool = event.query()
        return done

    def retain(self, tensor: torch.Tensor, stream: Stream) -> None:
        tensor.record_stream(stream)  # type: ignore[arg-type]

    def empty(self, size: int, device: torch.device) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=device)

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def host_memory(self, pinned: torch.Tensor) -> memoryview:
        memory: Any = (ctypes.c_char * pinned.nbytes).from_address(pinned.data_ptr())
        memory.tensor = pinned  # keeps it alive
        return memoryview(memory).cast("B")

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)
