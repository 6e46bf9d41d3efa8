"""An accelerator without a device: it notes what is asked of it, and proves that the order is right.

    with recording_device() as device:  # the runtime of this process; ends with `device.check()`
        tensor = device.tensor([1.0, 2.0], device=0)
        ...

Every op is done at once, on the CPU, so values are always right; whether they would be on a device is what
`violations` tells: see `rpcgroup.testing.stream_order`.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakSet, finalize

import torch

from rpcgroup.cuda import runtime as cuda_runtime
from rpcgroup.cuda.ipc import Ipc
from rpcgroup.testing.current_streams import CurrentStreams
from rpcgroup.testing.device_tensor import Block, DeviceTensor, span_of
from rpcgroup.testing.program_lines import program_lines
from rpcgroup.testing.recorded_streams import Hold, RecordedEvent, RecordedStream, StreamPool
from rpcgroup.testing.stream_order import EVERYTHING, Lane, Memory, Span, StreamOrder, Use

__all__ = ["Hold", "RecordingDevice", "recording_device"]

_HELD_AT_MOST = 60.0
"""Seconds: a test that waits longer for a held stream will never end."""
_GARBAGE = 0xCD
"""What fresh memory is full of."""


class PinnedBytes(bytearray):
    """Memory of the host whose end can be noticed."""


class _Thread(threading.local):
    current_device = 0


class RecordingDevice:
    """A `Runtime`. `violations` are lines, each says what is not ordered, on which stream, and where."""

    tensor_type: type[torch.Tensor] = DeviceTensor

    def __init__(self, device_count: int = 2, pool: int = 8) -> None:
        """`pool`: how many streams each device has of each priority, as ATen's 32; they are given out in turn."""
        self._lock = threading.Lock()  # guards all below; ops on the tensors inside are done outside of it
        self._released = threading.Condition(self._lock)
        self._order = StreamOrder()
        self._names = count(1)
        self._failures: defaultdict[str, deque[BaseException]] = defaultdict(deque)
        self._events: WeakSet[RecordedEvent] = WeakSet()
        self._events_used = 0
        self._events_recorded = 0
        self._devices = [torch.device("cuda", index) for index in range(device_count)]
        self._pool = StreamPool(self._devices, pool)
        # Changed by destructors, which run anywhere, and so without the lock:
        self._pinned: dict[int, Memory] = {}  # by address
        self._dropped: deque[tuple[Memory, str]] = deque()
        """What the next that takes the lock has to free; nothing has been enqueued since."""
        self._thread = _Thread()
        self.current_streams = CurrentStreams(self._pool.defaults, self._record, self._wait)
        self.shared_memory: Ipc | None = None
        """By which members of one process share tensors as processes do: a `RecordingIpc`."""

    # -- for tests ----------------------------------------------------------------------------------------

    @property
    def violations(self) -> list[str]:
        with self._locked():
            return list(self._order.violations)

    def check(self) -> None:
        """Raises `AssertionError` with all violations."""
        violations = self.violations
        if violations:
            raise AssertionError(f"{len(violations)} order violations:\n" + "\n".join(violations))

    @property
    def events_never_used(self) -> int:
        """How many events were recorded and dropped, and nobody had waited for them nor asked."""
        with self._locked():
            return self._events_recorded - self._events_used - sum(not event.used for event in self._events)

    def tensor(self, data: Any, device: Any = 0, dtype: torch.dtype | None = None) -> DeviceTensor:
        """`data`, as `torch.as_tensor` takes it, on a device, written on its current stream."""
        plain = torch.as_tensor(data, dtype=dtype).detach()
        exact = self.exact(device)
        stream = self.current_stream(exact)
        inner = plain.clone()
        block = self.allocate(stream, inner, "tensor()")
        self.enqueue(stream, "tensor()", [(block.memory, EVERYTHING, True)])
        return DeviceTensor(self, exact, inner, block)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy, for which the host waits: `tensor.cpu()` without its gradients."""
        return tensor.detach().cpu()

    def hold(self, what: RecordedStream | torch.device | int | str) -> Hold:
        """Enqueue what takes until `release()`, on the stream or on all streams of the device."""
        hold = Hold(self._released)
        device = None if isinstance(what, RecordedStream) else self.exact(what)
        with self._locked():
            for stream in self._pool.streams:
                if what is stream or device == stream.device:
                    stream.holds |= {hold}
        return hold

    def sleep(self, stream: RecordedStream, seconds: float) -> None:
        """Enqueue what takes so long. Behind a hold it runs while that is held."""
        with self._locked():
            stream.busy_until = max(stream.busy_until, time.monotonic()) + seconds
            self._order.enqueue(stream.lane, "sleep()", ())

    def fail_next(self, what: str, error: BaseException) -> None:
        """The next call of `empty`, `copy`, `synchronize` or `record` raises it, whichever thread's it is."""
        if what not in ("copy", "empty", "record", "synchronize"):
            raise ValueError(f"fail_next({what!r}): it is 'copy', 'empty', 'record' or 'synchronize'")
        with self._locked():
            self._failures[what].append(error)

    # -- Runtime ------------------------------------------------------------------------------------------

    def device_count(self) -> int:
        return len(self._devices)

    def ipc(self) -> Ipc | None:
        return self.shared_memory

    def current_stream(self, device: torch.device) -> RecordedStream:
        return self.current_streams.get(self.exact(device))

    def new_stream(self, device: torch.device, priority: int = 0) -> RecordedStream:
        with self._locked():
            return self._pool.next(self.exact(device), priority)

    @contextmanager
    def use(self, streams: Iterable[Any]) -> Iterator[None]:
        before = self.current_streams.all()
        self.current_streams.put({**before, **{stream.device: stream for stream in streams}})
        try:
            yield
        finally:
            self.current_streams.put(before)

    def record(self, stream: Any) -> RecordedEvent:
        self._fail("record")
        event = self._record(stream)
        with self._locked():
            self._events_recorded += 1
            self._events.add(event)
        return event

    def wait(self, stream: Any, event: RecordedEvent) -> None:
        self._note_used(event)
        self._wait(stream, event)

    def synchronize(self, event: RecordedEvent) -> None:
        self._fail("synchronize")
        self._note_used(event)
        self._synchronize(event)

    def is_done(self, event: RecordedEvent) -> bool:
        self._note_used(event)
        with self._locked():
            done = event.is_done()
            if done:
                self._order.synchronize(event.clock)
            return done

    def retain(self, tensor: torch.Tensor, stream: Any) -> None:
        with self._locked():
            self._order.retain(_on_device(tensor, "retain").block.memory, stream.lane)

    def empty(self, size: int, device: torch.device) -> DeviceTensor:
        self._fail("empty")
        exact = self.exact(device)
        inner = torch.empty(size, dtype=torch.uint8)
        self.fill_with_garbage(inner)
        return DeviceTensor(self, exact, inner, self.allocate(self.current_stream(exact), inner, "empty()"))

    def pinned(self, size: int) -> torch.Tensor:
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        memory = PinnedBytes(size)
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        address = tensor.untyped_storage().data_ptr()
        self._pinned[address] = Memory(f"pinned memory {next(self._names)} of {size} B")
        finalize(memory, self._pinned.pop, address).atexit = False
        return tensor

    def host_memory(self, pinned: torch.Tensor) -> memoryview:
        memory = self.memory_of(pinned)
        if memory is None and pinned.numel():
            raise AssertionError("host_memory() of a tensor that is not pinned memory of this device")
        if memory is not None:
            with self._locked():
                self._order.access_by_host(memory, span_of(pinned), f"host_memory() {program_lines()}")
        buffer: Any = (ctypes.c_char * pinned.nbytes).from_address(pinned.data_ptr())
        buffer.tensor = pinned  # keeps it alive
        return memoryview(buffer).cast("B")

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self._fail("copy")
        for tensor in (target, source):
            if not isinstance(tensor, DeviceTensor) and tensor.numel() and self.memory_of(tensor) is None:
                raise AssertionError("copy(): the memory of the host is not pinned, so this blocks")
        with torch.no_grad():
            target.copy_(source, non_blocking=True)

    @property
    def current_device(self) -> int:
        """This thread's."""
        return self._thread.current_device

    @current_device.setter
    def current_device(self, index: int) -> None:
        self._thread.current_device = self.exact(index).index

    # -- for DeviceTensor ---------------------------------------------------------------------------------

    def exact(self, device: Any) -> torch.device:
        """With its index, by default the current one's; raises `RuntimeError` where there is none such."""
        place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if place.type == "cpu":
            return place
        place = torch.device(place.type, self.current_device if place.index is None else place.index)
        if place not in self._devices:
            raise RuntimeError(
                f"CUDA error: invalid device ordinal: {place}, of {len(self._devices)} devices"
            )
        return place

    def allocate(self, stream: RecordedStream, inner: torch.Tensor, op: str) -> Block:
        with self._locked():
            kind = f"{str(inner.dtype).removeprefix('torch.')}{list(inner.size())}"
            name = f"tensor {next(self._names)} ({kind} of {stream.device})"
            return Block(self._order.allocate(stream.lane, name, f"{op} {program_lines()}"), self._drop)

    def enqueue(self, stream: RecordedStream, op: str, uses: Iterable[tuple[Memory, Span, bool]]) -> None:
        by_engine = self.current_streams.is_engines(stream)
        with self._locked():
            made = [Use(*use) for use in uses]
            if by_engine:  # it retains the gradients that it brings from other streams
                for memory, _, _ in made:
                    if stream.lane not in memory.users:
                        self._order.retain(memory, stream.lane)
            self._order.enqueue(stream.lane, f"{op} {program_lines()}", made)

    def fill_with_garbage(self, fresh: torch.Tensor) -> None:
        if fresh.dtype is not torch.bool:  # which has but two values
            torch.empty(0, dtype=torch.uint8).set_(fresh.untyped_storage()).fill_(_GARBAGE)

    def drain_device(self, device: torch.device) -> None:
        """The host waits for all of its streams."""
        for stream in self._pool.streams:
            if stream.device == device:
                self.drain(stream)

    def default_stream(self, device: torch.device) -> RecordedStream:
        return self._pool.defaults[device]

    def read_elsewhere(self, tensor: DeviceTensor, event: RecordedEvent) -> Callable[[], None]:
        """Another process reads it, behind the event; until what this gives is called, which tells that it has."""
        lane = Lane("a stream of another process")
        with self._locked():
            self._order.wait(lane, event.clock)
            use = Use(tensor.block.memory, span_of(tensor), writes=False)
            self._order.enqueue(lane, f"another process {program_lines()}", [use])

        def read() -> None:
            with self._locked():
                self._order.synchronize(lane.clock)

        return read

    def written_elsewhere(
        self, inner: torch.Tensor, device: torch.device, time: float
    ) -> tuple[DeviceTensor, RecordedEvent]:
        """Memory of another process, and its event, which is done by then."""
        lane = Lane("a stream of another process")
        memory = Memory(f"memory of another process, {inner.nbytes} B of {device}")
        with self._locked():
            self._order.enqueue(lane, "another process", [Use(memory, EVERYTHING, writes=True)])
            event = RecordedEvent(self._order.snapshot(lane), frozenset(), time)
        return DeviceTensor(self, device, inner, Block(memory, lambda memory: None)), event

    def drain(self, stream: RecordedStream) -> None:
        """The host waits for all that is enqueued on it."""
        self._synchronize(self._record(stream))

    def join(self, behind: RecordedStream, stream: RecordedStream) -> None:
        """One stream behind the other."""
        self._wait(behind, self._record(stream))

    def memory_of(self, tensor: torch.Tensor) -> Memory | None:
        """None for what is in the host's ordinary memory."""
        if isinstance(tensor, DeviceTensor):
            return tensor.block.memory
        return self._pinned.get(tensor.untyped_storage().data_ptr())

    def moved(self, tensor: torch.Tensor, target: torch.device, non_blocking: bool) -> torch.Tensor:
        """A copy on the target, which can be the host."""
        if target.type == "cpu":
            return torch.empty_like(tensor.wrapped if isinstance(tensor, DeviceTensor) else tensor).copy_(
                tensor
            )
        if not isinstance(tensor, DeviceTensor):
            sent = self.tensor(tensor, target)
            if not non_blocking:
                self.drain(self.current_stream(target))
            return sent
        inner = torch.empty_like(tensor.wrapped)
        copy = DeviceTensor(self, target, inner, self.allocate(self.current_stream(target), inner, "to()"))
        return copy.copy_(tensor, non_blocking=non_blocking)

    # -- inside -------------------------------------------------------------------------------------------

    def _record(self, stream: RecordedStream) -> RecordedEvent:
        with self._locked():
            stream.holds = frozenset(hold for hold in stream.holds if hold.active)
            done = max(stream.busy_until, time.monotonic())
            return RecordedEvent(self._order.snapshot(stream.lane), stream.holds, done)

    def _wait(self, stream: RecordedStream, event: RecordedEvent) -> None:
        with self._locked():
            self._order.wait(stream.lane, event.clock)
            stream.holds |= event.holds
            stream.busy_until = max(stream.busy_until, event.time)

    def _synchronize(self, event: RecordedEvent) -> None:
        with self._locked():
            if not self._released.wait_for(lambda: not event.is_held(), _HELD_AT_MOST):
                raise RuntimeError(
                    f"nobody has released the stream that the host waits for, in {_HELD_AT_MOST} s"
                )
            while (seconds := event.seconds_left()) > 0:
                self._released.wait(seconds)
            self._order.synchronize(event.clock)

    def _note_used(self, event: RecordedEvent) -> None:
        with self._locked():
            self._events_used += not event.used
            event.used = True

    def _drop(self, memory: Memory) -> None:
        self._dropped.append((memory, f"a drop {program_lines()}"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            while self._dropped:
                self._order.free(*self._dropped.popleft())
            yield

    def _fail(self, what: str) -> None:
        with self._locked():
            if self._failures[what]:
                raise self._failures[what].popleft()


@contextmanager
def recording_device(device_count: int = 2, pool: int = 8) -> Iterator[RecordingDevice]:
    """One as the runtime of this process; `check()`s it, unless the body has raised."""
    device = RecordingDevice(device_count, pool)
    before = cuda_runtime.current_runtime()
    cuda_runtime.use_runtime(device)
    try:
        yield device
    finally:
        cuda_runtime.use_runtime(before)
    device.check()


def _on_device(tensor: torch.Tensor, what: str) -> DeviceTensor:
    if not isinstance(tensor, DeviceTensor):
        raise AssertionError(f"{what}() of a tensor that is not on a device")
    return tensor
