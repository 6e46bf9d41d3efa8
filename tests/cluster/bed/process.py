"""One program of the cluster as a child process: started until it is ready, stopped, gone with its parent."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rpcgroup.local.process import LAUNCHER

__all__ = ["Program", "StartError", "answers", "free_port"]

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
PORTS: Final = range(20000, 32000)
"""Below those that the kernel gives to connections: none of them can take a port between its choice and its use."""


class StartError(Exception):
    """A program did not become ready; the message holds its last lines."""


class Program:
    """Starts, stops and starts again with the same command. Its output is added to `log`.

    `start` must be called in a thread that lives as long as the program should: the kernel kills it with the
    thread that made it, so that a killed test run leaves nothing.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        is_ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        patience: tuple[float, float] = (READY_SECONDS, STOP_SECONDS),
    ) -> None:
        """`patience`: the seconds it has to become ready and to stop."""
        self.name = name
        self.log = log
        self._command = command
        self._is_ready = is_ready
        self._ready_seconds, self._stop_seconds = patience
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Returns when it is ready. Raises `StartError` when it ends before, or is not in time."""
        if self.pid is not None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *self._command],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the parent, which ends it in its order
            )
        deadline = time.monotonic() + self._ready_seconds
        while not self._is_ready():
            if self._process.poll() is not None:
                raise StartError(self._why_not(f"ended with {self._process.returncode}"))
            if time.monotonic() > deadline:
                raise StartError(self._why_not(f"is not ready after {self._ready_seconds:g} s"))
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Let it finish; by force if it takes too long. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It answers nothing until `thaw`, its connections stay open."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        """Nothing where it does not run."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self.send(number)
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait(STOP_SECONDS)
        self._process = None

    def _why_not(self, what: str) -> str:
        last = self.log.read_text(errors="replace").splitlines()[-8:]
        return "\n".join([f"{self.name} {what}; its log is {self.log}. Its last lines:", *last])


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise StartError(f"no free port among a hundred of {PORTS.start}-{PORTS.stop - 1}")


def answers(url: str) -> bool:
    """Whether a GET gives 200. The certificate is not verified: the health pages are asked before it is known."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=2, context=unverified) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
