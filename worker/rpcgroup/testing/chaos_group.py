"""A group of real worker processes, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup.membership.url import open_rendezvous
from rpcgroup.testing.chaos import run_worker

__all__ = ["ChaosGroup"]

START_TIMEOUT = 60.0
END_TIMEOUT = 90.0


class ChaosGroup:
    """Starts, kills, drains and ends workers; remembers what became of each."""

    def __init__(self, etcd: EtcdServer, directory: Path, group: str, ttl: int, seed: int) -> None:
        self.url = f"etcd://{etcd.endpoint}/chaos/{group}"
        self.directory = directory
        self.ttl = ttl
        self.seed = seed
        self.secret = secrets.token_hex(16)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["rpcgroup.testing.chaos", "rpcgroup.api", "rpcgroup.membership.etcd.rendezvous"]
        )
        self.rendezvous = open_rendezvous(self.url)
        self.processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self.controls: dict[str, Connection] = {}
        self.incarnations: dict[str, int] = {}
        self.killed: set[int] = set()
        self.left_threads: list[str] = []

    def start(self, name: str) -> None:
        near, far = self.context.Pipe()
        process = self.context.Process(
            target=run_worker,
            args=(name, self.url, self.secret, self.ttl, str(self.directory), self.seed, far),
            name=name,
        )
        process.start()
        far.close()
        self.processes[name], self.controls[name] = process, near

    def await_joined(self, name: str) -> None:
        assert self.controls[name].poll(START_TIMEOUT), f"{name} did not join"
        word, self.incarnations[name] = self.controls[name].recv()
        assert word == "joined"

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        self.killed.add(self.incarnations[name])
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(END_TIMEOUT)
        self.controls.pop(name).close()

    def leave(self, name: str) -> None:
        self.controls[name].send("leave")
        self.await_left(name)

    def drain(self, name: str) -> None:
        self.rendezvous.request_drain(name, DrainRequest(time.time() + 30, "chaos"))
        self.await_left(name)

    def await_left(self, name: str) -> None:
        process, control = self.processes.pop(name), self.controls.pop(name)
        assert control.poll(END_TIMEOUT), f"{name} did not leave"
        word, threads = control.recv()
        assert word == "left"
        self.left_threads += threads
        process.join(END_TIMEOUT)
        assert process.exitcode == 0, f"{name} ended with {process.exitcode}"
        control.close()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join(END_TIMEOUT)
        for control in self.controls.values():
            control.close()
        self.rendezvous.close()
