"""The two processes of a peer, set up once and then told slice by slice what to do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.meeting import Meeting
from benchmarks.peers import CLIENT, PEERS, SERVER
from benchmarks.workloads import WORKLOADS

__all__ = ["Stage", "processes"]

START_SECONDS = 60.0
SLICE_SECONDS = 120.0


def processes() -> Any:
    """A fork server that has imported torch: each process starts clean, in milliseconds."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:torch.distributed.distributed_c10d")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "benchmarks.stage"])
    return context


class Stage:
    """One peer, ready to be measured."""

    def __init__(self, peer: str, meeting: Meeting) -> None:
        self.peer = peer
        context = processes()
        self._pipes: dict[str, Connection] = {}
        self._processes = []
        for name in (SERVER, CLIENT):
            self._pipes[name], theirs = context.Pipe()
            process = context.Process(target=_play, args=(peer, name, meeting, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
        try:
            for name in (SERVER, CLIENT):
                self._receive(name, START_SECONDS)
        except Exception:
            self.close()
            raise

    def can(self, need: str) -> bool:
        return hasattr(PEERS[self.peer], need)

    def measure(self, workload: str, seconds: float) -> list[float]:
        self._pipes[CLIENT].send((workload, seconds))
        values: list[float] = self._receive(CLIENT, SLICE_SECONDS)
        return values

    @contextmanager
    def awake(self) -> Iterator[None]:
        """A turn of this peer; a peer that polls while idle is stopped the rest of the time."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            if PEERS[self.peer].polls_when_idle:
                self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def _receive(self, name: str, seconds: float) -> Any:
        if not self._pipes[name].poll(seconds):
            raise TimeoutError(f"the {name} of {self.peer!r} said nothing for {seconds:g} s")
        try:
            answer = self._pipes[name].recv()
        except EOFError:
            raise RuntimeError(f"the {name} of {self.peer!r} has died") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _play(peer: str, name: str, meeting: Meeting, orders: Connection) -> None:
    """The life of either process: open, do as told, close when the pipe is closed."""
    actor = PEERS[peer](meeting)
    try:
        actor.open(name)
    except Exception as exc:
        orders.send(RuntimeError(f"{peer}, {name}: {type(exc).__name__}: {exc}"))
        return
    orders.send(None)
    slices = {workload.name: workload.slice for workload in WORKLOADS}
    while True:
        try:
            workload, seconds = orders.recv()
        except (EOFError, ConnectionError):
            break
        try:
            orders.send(slices[workload](actor, seconds))
        except Exception as exc:
            orders.send(RuntimeError(f"{peer}, {workload}: {type(exc).__name__}: {exc}"))
    actor.close()
    os._exit(0)  # torch's agent, left without its peer, may wait in its destructor
