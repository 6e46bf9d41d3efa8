"""One worker's operating-system process: its start, what it writes, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["WorkerProcess"]

MAX_LINE: Final = 64 * 1024
"""Bytes; a longer line is passed on in pieces, so that a worker that writes no newline costs no memory."""

LAUNCHER: Final = Path(__file__).with_name("launch.py")


class WorkerProcess:
    """A command in a session of its own (Ctrl-C in the terminal reaches the driver alone), with its output.

    Must be made in a thread that lives as long as the driver: its end would end the process too. Used by the
    driver's loop only.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None,
        log: Path,
        on_line: Callable[[str], None],
    ) -> None:
        self._on_line = on_line
        self._partial = b""
        self._exhausted = False
        self._log = log.open("ab", buffering=0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        except BaseException:
            self._log.close()
            raise
        assert self._process.stdout
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> int | None:
        """The descriptor to wait on before `pump`; None once nothing more will come."""
        return None if self._exhausted else self._output.fileno()

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs.

        What the ended command left in its process group is killed.
        """
        ended = self._process.poll()
        if ended is not None:
            self._signal_group(signal.SIGKILL)
        return ended

    def terminate(self) -> None:
        """Ask the command itself, not its children: it knows what they should do."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)

    def pump(self) -> None:
        """Pass on what the process has written up to now."""
        while not self._exhausted:
            chunk = self._output.read(64 * 1024)
            if chunk is None:
                return
            if not chunk:
                self._exhausted = True
                self._flush()
            self._log.write(chunk)
            self._split(chunk)

    def close(self) -> None:
        """Take the last of the output and let go; the process must have ended."""
        self._process.wait(timeout=5.0)
        self.pump()
        self._flush()
        self._exhausted = True
        self._output.close()
        self._log.close()

    def _split(self, chunk: bytes) -> None:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace").rstrip("\r"))
        if len(self._partial) >= MAX_LINE:
            self._flush()

    def _flush(self) -> None:
        rest, self._partial = self._partial, b""
        if rest:
            self._on_line(rest.decode(errors="replace"))

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            pass
