"""A worker is killed in a backward pass: its caller hears of it, by name, and the others let the context go."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

import rpcgroup as rpc
from rpcgroup import autograd, contract
from rpcgroup.local.etcd_server import EtcdServer

NAMES = ["a", "b", "c", "d"]
PATIENCE = 60.0


def through(path: list[str], victim: str, x: torch.Tensor) -> torch.Tensor:
    """Runs on the first of `path`, which calls the next; the gradient that comes back there ends the victim."""
    here, *rest = path
    y = torch.tanh(x * 2)
    if here == victim:
        y.register_hook(end_this_process)
    return rpc.rpc_sync(rest[0], through, (rest, victim, y)) if rest else y


def end_this_process(grad: torch.Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def contexts() -> int:
    return int(autograd._get_debug_info()["num_autograd_contexts"])


def lead(victim: str) -> tuple[str, float, dict[str, int]]:
    """What backward raised, after how many seconds, and who still has a context when all had time to hear of it."""
    others = [name for name in NAMES[1:] if name != victim]
    x = torch.ones(4, requires_grad=True)
    with autograd.context() as context_id:
        # The first use of torch's engine in a process takes it a second, which is not what is measured.
        autograd.backward(context_id, [rpc.rpc_sync("b", through, (NAMES[1:], "", x)).sum()])
    with autograd.context() as context_id:
        loss = rpc.rpc_sync("b", through, (NAMES[1:], victim, x)).sum()
        began = time.monotonic()
        try:
            autograd.backward(context_id, [loss])
            said = ""
        except RuntimeError as exc:
            said = str(exc)
        took = time.monotonic() - began
    end = time.monotonic() + PATIENCE
    left = dict.fromkeys(others, 1)
    while any(left.values()) and time.monotonic() < end:
        time.sleep(0.02)
        left = {name: rpc.rpc_sync(name, contexts) for name in others}
    return said, took, {**left, "a": contexts()}


def serve(name: str, url: str, control: Connection) -> None:
    os.environ[contract.ENV_SECRET] = "secret"
    group = rpc.init_rpc(name, rank=NAMES.index(name), world_size=len(NAMES), init_method=url)
    group.wait_for(len(NAMES), timeout=PATIENCE)
    control.send("here")
    if control.poll(PATIENCE) and (victim := control.recv()):
        control.send(lead(victim))
        control.poll(PATIENCE)
    rpc.shutdown(graceful=False)


class Workers:
    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rpcgroup.api", "rpcgroup.autograd", __name__])
        self._controls: dict[str, Connection] = {}
        self._processes: dict[str, Any] = {}
        for name in NAMES:
            self._controls[name], far = context.Pipe()
            self._processes[name] = context.Process(target=serve, args=(name, url, far), name=name)
            self._processes[name].start()
            far.close()

    def hear(self, name: str) -> Any:
        assert self._controls[name].poll(PATIENCE), f"nothing was heard of {name}"
        return self._controls[name].recv()

    def lead(self, victim: str) -> Any:
        self._controls["a"].send(victim)
        return self.hear("a")

    def close(self) -> None:
        for name, process in self._processes.items():
            self._controls[name].close()
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join(PATIENCE)


@pytest.fixture(params=["file", "etcd"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/store"
        return
    with EtcdServer(tmp_path) as server:
        yield f"etcd://{server.endpoint}/chaos/backward"


@pytest.mark.parametrize("victim", NAMES[1:])
def test_a_death_in_a_backward_pass_is_told_by_name(url: str, victim: str) -> None:
    with contextlib.closing(Workers(url)) as workers:
        for name in NAMES:
            workers.hear(name)
        said, took, left = workers.lead(victim)
    print(f"{url.partition(':')[0]}, {victim} killed: an error after {took:.3f} s; contexts left: {left}")
    assert victim in said.split(), said
    assert set(left.values()) == {0}
