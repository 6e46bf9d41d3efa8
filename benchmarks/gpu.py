"""`python -m benchmarks.gpu`: tensors on devices between two processes of this machine, beside plain copies.

Two workers serve: `shares`, with whom memory of devices is shared where that works, and `stages`, with whom everything
goes through the host. A rate is that of some transfers in flight at a time, until the last is in the callee's memory;
that of pinned copies is to the host and from there, one after the other. With several GPUs the callee has the second.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

import rpcgroup as rpc
from rpcgroup.agent.agent import Agent
from rpcgroup.cuda.ipc import Ipc
from rpcgroup.cuda.runtime import use_runtime
from rpcgroup.cuda.torch_cuda import TorchCuda
from rpcgroup.cuda.traffic import RECEIVED, SENT
from rpcgroup.options import TensorPipeRpcBackendOptions

__all__ = ["Finding", "main", "table"]

SIZE: Final = 256 << 20
"""Bytes of a tensor."""
IN_FLIGHT: Final = 4
ROUNDS: Final = 7
KERNEL_SECONDS: Final = 2.0
PROBE_SECONDS: Final = 10.0
NAMES: Final = ["client", "shares", "stages"]


class Finding(NamedTuple):
    name: str
    value: float
    unit: str
    beside: float | None = None
    """What it is compared with, in the same unit."""
    bar: float | None = None
    """The least ratio to that; without it, the most that the value may be."""

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        met = self.value <= self.bar if self.beside is None else self.value >= self.bar * self.beside
        return "met" if met else "NOT MET"


def table(findings: list[Finding]) -> str:
    lines = [f"{'':58}{'':>10} {'':4}  {'ratio':>6}  {'bar':>8}"]
    for f in findings:
        ratio = f"{f.value / f.beside:6.1%}" if f.beside else ""
        bar = "" if f.bar is None else f"< {f.bar:g} {f.unit}" if f.beside is None else f">= {f.bar:.0%}"
        lines.append(f"{f.name:58}{f.value:10.2f} {f.unit:4}  {ratio:>6}  {bar:>8}  {f.verdict}".rstrip())
    return "\n".join(lines)


class ByTheHost(TorchCuda):
    """CUDA, in a process that shares no memory of devices."""

    def ipc(self) -> Ipc | None:  # type: ignore[override]
        return None


# The workers that serve.


def serve(name: str, meeting: str) -> None:
    if name == "stages":
        use_runtime(ByTheHost())
    join(name, meeting)
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()


def echo(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def arrived(*tensors: torch.Tensor) -> None:
    """Once the tensors are in this process's memory."""
    for tensor in tensors:
        torch.cuda.current_stream(tensor.device).synchronize()


@functools.cache
def cycles_per_second(device: int) -> float:
    """Of `torch.cuda._sleep`, which spins; the clock of an idle GPU rises first."""
    cycles = 100_000_000
    return [cycles / seconds(device, lambda: torch.cuda._sleep(cycles)) for _ in range(3)][-1]  # type: ignore[no-untyped-call]


def warm(tensor: torch.Tensor) -> None:
    cycles_per_second(tensor.get_device())
    tensor + 1  # a kernel is loaded when it is first used, and the driver may wait with that for what runs


def slowly(tensor: torch.Tensor) -> torch.Tensor:
    device = tensor.get_device()
    with torch.cuda.device(device):
        torch.cuda._sleep(int(KERNEL_SECONDS * cycles_per_second(device)))  # type: ignore[no-untyped-call]
    return tensor + 1


# The client.


def join(name: str, meeting: str) -> Agent:
    target = f"cuda:{1 % torch.cuda.device_count()}"
    maps: Any = {other: {"cuda:0": target} for other in NAMES[1:]} if name == "client" else {}
    group = rpc.init_rpc(
        name,
        rank=NAMES.index(name),
        world_size=len(NAMES),
        init_method=f"file://{meeting}",
        rpc_backend_options=TensorPipeRpcBackendOptions(device_maps=maps),
    )
    return group.agent


@contextmanager
def joined() -> Iterator[Agent]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        processes = [context.Process(target=serve, args=(name, meeting), daemon=True) for name in NAMES[1:]]
        for process in processes:
            process.start()
        try:
            agent = join("client", meeting)
            try:
                yield agent
            finally:
                rpc.shutdown(graceful=False)
        finally:
            for process in processes:
                process.terminate()
                process.join(30)


def seconds(device: int, work: Callable[[], object]) -> float:
    """Of the device, for what `work` enqueues on its current stream."""
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def rate(work: Callable[[], float], size: int = SIZE) -> float:
    """Median, in GB/s, of `work`, which returns seconds."""
    work()
    return size / statistics.median(work() for _ in range(ROUNDS)) / 1e9


def sending(worker: str, tensors: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    for future in [rpc.rpc_async(worker, arrived, args=(tensor,)) for tensor in tensors]:
        future.wait()
    return time.perf_counter() - began


def shares_memory(agent: Agent, worker: str) -> bool:
    """Whether tensors go to it and back by shared memory; asks until they do, or for some seconds."""
    assert agent.accelerator is not None
    tensor = torch.ones(1 << 20, device="cuda:0")
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        rpc.rpc_sync(worker, echo, args=(tensor,))
        traffic = agent.accelerator.traffic.by_peer(len(NAMES))[worker]
        shared = all("ipc" in traffic[direction] for direction in (SENT, RECEIVED))
        if shared or time.monotonic() > deadline:
            return shared


def copies() -> Iterator[Finding]:
    callees = 1 % torch.cuda.device_count()
    source = torch.ones(SIZE, dtype=torch.uint8, device="cuda:0")
    target = torch.empty(SIZE, dtype=torch.uint8, device=f"cuda:{callees}")
    pinned = torch.empty(SIZE, dtype=torch.uint8, pin_memory=True)

    def direct() -> float:
        return seconds(0, lambda: target.copy_(source))

    def through_the_host() -> float:
        away = seconds(0, lambda: pinned.copy_(source, non_blocking=True))
        return away + seconds(callees, lambda: target.copy_(pinned, non_blocking=True))

    yield Finding("copy from device to device", rate(direct), "GB/s")
    yield Finding("copies to pinned memory and from there", rate(through_the_host), "GB/s")


def transfers(agent: Agent, device_copy: float, pinned_copies: float) -> Iterator[Finding]:
    tensors = [torch.ones(SIZE, dtype=torch.uint8, device="cuda:0") for _ in range(IN_FLIGHT)]
    torch.cuda.synchronize()
    found = [("stages", "through the host", pinned_copies, 0.8)]
    if shares_memory(agent, "shares"):
        found.append(("shares", "by shared memory", device_copy, 0.9))
    for worker, how, beside, bar in found:
        flying = rate(lambda worker=worker: sending(worker, tensors), IN_FLIGHT * SIZE)  # type: ignore[misc]
        single = rate(lambda worker=worker: sending(worker, tensors[:1]))  # type: ignore[misc]
        yield Finding(f"256 MB {how}, {IN_FLIGHT} in flight", flying, "GB/s", beside, bar)
        yield Finding(f"256 MB {how}, one at a time", single, "GB/s", beside)


def behind_a_kernel(worker: str) -> Iterator[Finding]:
    tensor = torch.ones(1 << 20, device="cuda:0")
    rpc.rpc_sync(worker, warm, args=(tensor,))
    completed, ordered, waited = [], [], []
    for _ in range(3):
        began = time.perf_counter()
        future = rpc.rpc_async(worker, slowly, args=(tensor,))
        while not future.done():
            time.sleep(0.0005)
        completed.append(time.perf_counter() - began)
        future.wait(non_blocking=True)
        ordered.append(time.perf_counter() - began)
        future.wait()
        waited.append(time.perf_counter() - began)
    what = f"a call behind a kernel of {KERNEL_SECONDS:g} s"
    yield Finding(f"{what}: completes after", 1000 * max(completed), "ms", bar=50.0)
    yield Finding(f"{what}: wait(non_blocking=True) returns after", 1000 * max(ordered), "ms")
    yield Finding(f"{what}: wait() returns after", 1000 * min(waited), "ms")


def main() -> int:
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu is skipped: torch {torch.__version__} finds no GPU here")
        return 0
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    with joined() as agent:
        findings = list(copies())
        findings += transfers(agent, findings[0].value, findings[1].value)
        shares = shares_memory(agent, "shares")
        if shares:
            findings += behind_a_kernel("shares")
    print(table(findings))
    if not shares:
        print(
            "\nNo memory of devices is shared between two processes here, so a future completes when its tensors"
        )
        print("have come through the host.")
    print(f"\ntorch {torch.__version__}, {len(names)} x {names[0]}, {time.strftime('%Y-%m-%d')}")
    return 1 if any(finding.verdict == "NOT MET" for finding in findings) else 0


if __name__ == "__main__":
    # The workers find its functions under this name.
    sys.exit(importlib.import_module("benchmarks.gpu").main())
