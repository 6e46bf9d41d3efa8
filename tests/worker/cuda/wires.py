"""A connection for transfers, as a test likes it: chunks wait on it until they are delivered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.inbound import Arrivals
from rpcgroup.cuda.outbound import Departure
from rpcgroup.cuda.staging import PinnedPool
from rpcgroup.testing.recording_device import RecordingDevice
from rpcgroup.testing.recording_ipc import RecordingIpc
from rpcgroup.wire.payloads import Payload

CHUNK = 256 << 10


class Timers(list[tuple[float, Callable[[], None]]]):
    """What is to be done later, or by another thread, is done when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[Callable[[], None]] = []

    def __call__(self, seconds: float, job: Callable[[], None]) -> None:
        self.append((seconds, job))

    def submit(self, job: Callable[[], None]) -> None:
        self.submitted.append(job)

    def fire(self) -> None:
        jobs = [job for _, job in self]
        self.clear()
        for job in jobs:
            job()
        while self.submitted:
            self.submitted.pop(0)()


class Wire:
    """Both ends of a channel and what is on its way: chunks, and failures that the sender has told of."""

    def __init__(
        self,
        device: RecordingDevice,
        blocks: int = 8,
        receiver_blocks: int = 4,
        ipc: RecordingIpc | None = None,
    ) -> None:
        self.device = device
        self.timers = Timers()
        self.completions = Completions(device, self.timers, self.timers.submit)
        self.pool = PinnedPool(device, blocks * CHUNK, CHUNK)
        self.receiver_pool = PinnedPool(device, receiver_blocks * CHUNK, CHUNK)
        self.released: list[int] = []
        self.arrivals = Arrivals(
            device, self.receiver_pool, self.completions, bytearray, ipc, self.released.append
        )
        self.under_way: deque[tuple[int, int, int, memoryview]] = deque()
        self.failed: dict[int, Exception] = {}
        self.ready: dict[int, Events] = {}
        self.refused: dict[int, Exception] = {}

    def put(self, transfer: int, index: int, place: int, memory: memoryview) -> None:
        self.under_way.append((transfer, index, place, memory))

    def depart(self, transfer: int, tensors: Sequence[torch.Tensor], timeout: float = 20.0) -> None:
        self.departure(transfer, tensors).run(self.put, self.failed.__setitem__, timeout)

    def departure(self, transfer: int, tensors: Sequence[torch.Tensor]) -> Departure:
        return Departure(self.device, self.pool, transfer, dict(enumerate(tensors)))

    def expect(self, transfer: int, payloads: Sequence[Payload]) -> None:
        def ready(events: Events) -> None:
            assert transfer not in self.ready and transfer not in self.refused
            self.ready[transfer] = events

        def failed(exc: Exception) -> None:
            assert transfer not in self.ready and transfer not in self.refused
            self.refused[transfer] = exc

        self.arrivals.expect(transfer, payloads, ready, failed)

    def deliver(self, count: int | None = None) -> None:
        """Chunks that are under way, the oldest first; each is acknowledged and so not kept."""
        for _ in range(len(self.under_way) if count is None else count):
            self.deliver_one(0)

    def deliver_one(self, which: int) -> None:
        transfer, index, place, memory = self.under_way[which]
        del self.under_way[which]
        received = self.arrivals.allocate(len(memory))
        memoryview(received).cast("B")[:] = memory
        del memory
        self.arrivals.on_chunk(transfer, index, place, received)


def random_bytes(device: RecordingDevice, size: int, index: int = 0) -> torch.Tensor:
    return device.tensor(torch.randint(0, 256, (size,), dtype=torch.uint8), index)


def payloads_for(tensors: Sequence[torch.Tensor], devices: Sequence[int]) -> list[Payload]:
    return [Payload(tensor.nbytes, index) for tensor, index in zip(tensors, devices, strict=True)]


def arrived(wire: Wire, transfer: int) -> list[torch.Tensor]:
    """What has come, as whoever uses it next sees it."""
    events = wire.ready[transfer]
    events.wait()
    return [tensor.cpu() for tensor in events.tensors]
