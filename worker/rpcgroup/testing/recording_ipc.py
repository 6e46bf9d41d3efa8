"""Shared memory between the two sides of a test that both are in this process, over the recording device."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import torch

from rpcgroup.cuda.ipc import Export
from rpcgroup.cuda.runtime import Event
from rpcgroup.testing.recording_device import RecordingDevice

__all__ = ["RecordingIpc"]


class RecordingIpc:
    """An `Ipc`. What is exported can be opened once, until its end."""

    def __init__(self, device: RecordingDevice) -> None:
        self._device = device
        self._ids = itertools.count(1)
        self._lock = threading.Lock()  # guards shared, opened
        self.shared: dict[bytes, tuple[torch.Tensor, Event]] = {}
        """What has been exported and has not ended."""
        self.opened: list[bytes] = []
        self.failures: dict[str, Exception] = {}
        """By method: what it raises, for as long as it is here."""

    def export(self, tensor: torch.Tensor) -> Export:
        self._fail("export")
        event = self._device.record(self._device.current_stream(tensor.device))
        blob = b"recorded %d" % next(self._ids)
        with self._lock:
            self.shared[blob] = tensor, event
        return Export(blob, tensor, lambda: self._end(blob))

    def device_of(self, blob: bytes) -> torch.device:
        self._fail("device_of")
        with self._lock:
            if blob not in self.shared:
                raise ValueError(f"no device has {blob!r}")
            return self.shared[blob][0].device

    def open(self, blob: bytes) -> tuple[torch.Tensor, Event]:
        self._fail("open")
        with self._lock:
            if blob in self.opened:
                raise RuntimeError(f"{blob!r} has been opened already")
            tensor, event = self.shared[blob]
            self.opened.append(blob)
        return tensor.detach(), event

    def close(self) -> None:
        """All members of the process have this one, so nothing ends."""

    def _end(self, blob: bytes) -> None:
        with self._lock:
            del self.shared[blob]

    def _fail(self, method: str) -> None:
        failure: Any = self.failures.get(method)
        if failure is not None:
            raise failure
