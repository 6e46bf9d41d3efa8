"""What a person sees of a run without a terminal: a line for each event and each line of a worker."""

from __future__ import annotations

import time
from typing import Any, Protocol, TextIO

__all__ = ["LineReporter", "Reporter"]


class Reporter(Protocol):
    """Called by the driver's loop only."""

    def event(self, subject: str, text: str) -> None:
        """Something happened to a worker, or to the group itself (`subject` is its name then)."""
        ...

    def line(self, worker: str, text: str) -> None:
        """A worker wrote a line."""
        ...

    def snapshot(self, snapshot: dict[str, Any]) -> None:
        """How things stand; see `rpcgroup.local.snapshot`."""
        ...

    def close(self) -> None: ...


class LineReporter:
    """Events with the time of day, workers' lines with their worker; snapshots are for terminals."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, subject: str, text: str) -> None:
        self._write(f"{time.strftime('%H:%M:%S')} {subject}: {text}")

    def line(self, worker: str, text: str) -> None:
        self._write(f"[{worker}] {text}")

    def snapshot(self, snapshot: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass

    def _write(self, line: str) -> None:
        try:
            print(line, file=self._stream, flush=True)
        except (BrokenPipeError, ValueError):
            pass  # `rpcgroup run | head`: the group goes on, and its logs are in files
