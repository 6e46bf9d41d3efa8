"""`torch.cuda.Stream` and `torch.cuda.Event`, of the recording device that the process has for CUDA's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from rpcgroup.testing.recorded_streams import RecordedEvent, RecordedStream
from rpcgroup.testing.recording_device import RecordingDevice
from rpcgroup.testing.stream_order import Lane

__all__ = ["Event", "Stream"]


class Stream:
    """A new one is the next of the pool, as torch's."""

    recorder: ClassVar[RecordingDevice]
    recorded: RecordedStream

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        place = self.recorder.exact("cuda" if device is None else device)
        self.recorded = self.recorder.new_stream(place, priority)

    @classmethod
    def of(cls, recorded: RecordedStream) -> Stream:
        stream = cls.__new__(cls)
        stream.recorded = recorded
        return stream

    @property
    def device(self) -> torch.device:
        return self.recorded.device

    @property
    def device_index(self) -> int:
        index: int = self.device.index
        return index

    @property
    def priority(self) -> int:
        return self.recorded.priority

    @property
    def lane(self) -> Lane:
        return self.recorded.lane

    @property
    def cuda_stream(self) -> int:
        return id(self.recorded)

    stream_id = cuda_stream

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def query(self) -> bool:
        return self.record_event().query()

    def synchronize(self) -> None:
        self.record_event().synchronize()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.recorded is other.recorded

    def __hash__(self) -> int:
        return hash(self.recorded)

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream {self.recorded!r}, emulated>"


class Event:
    """Not recorded, it is done; recorded again, it is the later place."""

    recorder: ClassVar[RecordingDevice]

    def __init__(
        self,
        device: Any = None,
        *,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
    ) -> None:
        self.enable_timing = enable_timing
        self.recorded: RecordedEvent | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.recorded = self.recorder.record(self._stream(stream))

    def wait(self, stream: Stream | None = None) -> None:
        if self.recorded is not None:
            self.recorder.wait(self._stream(stream), self.recorded)

    def query(self) -> bool:
        return self.recorded is None or self.recorder.is_done(self.recorded)

    def synchronize(self) -> None:
        if self.recorded is not None:
            self.recorder.synchronize(self.recorded)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds."""
        if not (self.enable_timing and end_event.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.recorded is None or end_event.recorded is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return 1000 * (end_event.recorded.time - self.recorded.time)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle 'torch.cuda.Event' object")

    def _stream(self, stream: Stream | None) -> RecordedStream:
        return self.recorder.current_stream(torch.device("cuda")) if stream is None else stream.recorded
