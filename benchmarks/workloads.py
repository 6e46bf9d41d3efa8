"""What is measured: a slice of time in which a client does one thing over and over."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

__all__ = ["WORKLOADS", "Bar", "Metric", "Workload"]

KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Bar:
    """The ratio to torch over TCP that issue 3 asks for; issue 5 for backward passes."""

    ratio: float
    at_least: bool

    def met(self, ratio: float) -> bool:
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.ratio:g}x"


def at_most(ratio: float) -> Bar:
    return Bar(ratio, at_least=False)


def at_least(ratio: float) -> Bar:
    return Bar(ratio, at_least=True)


@dataclass(frozen=True)
class Metric:
    """One figure of a slice. `of` makes it from what the slice yielded."""

    name: str
    unit: str
    of: Callable[[list[float]], float]
    bar: Bar | None = None
    lower_is_better: bool = True


@dataclass(frozen=True)
class Workload:
    """`needs` is the peer's method it uses; `slice(peer, seconds)` gives one value an operation."""

    name: str
    needs: str
    slice: Callable[[Any, float], list[float]]
    metrics: tuple[Metric, ...]
    instead: tuple[tuple[str, str], ...] = ()
    """(peer, the peer that takes its place here)."""


def repeat(operation: Callable[[], object], seconds: float, least: int = 3) -> list[float]:
    """Seconds of each operation, for this long and at least so many times."""
    times: list[float] = []
    end = perf_counter() + seconds
    while (start := perf_counter()) < end or len(times) < least:
        operation()
        times.append(perf_counter() - start)
    return times


def noop(peer: Any, seconds: float) -> list[float]:
    return repeat(peer.noop, seconds)


def echo(size: int) -> Callable[[Any, float], list[float]]:
    def slice_(peer: Any, seconds: float) -> list[float]:
        tensor = torch.ones(size // 4)
        return repeat(lambda: peer.echo(tensor), seconds)

    return slice_


def burst(calls: int) -> Callable[[Any, float], list[float]]:
    """Calls a second, one value a burst."""

    def slice_(peer: Any, seconds: float) -> list[float]:
        return [calls / t for t in repeat(lambda: peer.burst(calls), seconds)]

    return slice_


def threads(count: int) -> Callable[[Any, float], list[float]]:
    """Calls a second of all threads together, one value a slice."""

    def slice_(peer: Any, seconds: float) -> list[float]:
        made: list[int] = []
        callers = [
            threading.Thread(target=lambda: made.append(len(repeat(peer.noop, seconds))))
            for _ in range(count)
        ]
        start = perf_counter()
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return [sum(made) / (perf_counter() - start)]

    return slice_


def nest(depth: int) -> Callable[[Any, float], list[float]]:
    return lambda peer, seconds: repeat(lambda: peer.nest(depth), seconds)


def fetch(peer: Any, seconds: float) -> list[float]:
    return repeat(peer.fetch, seconds)


def backward(hops: int) -> Callable[[Any, float], list[float]]:
    """Backward passes over one graph, which is made before."""

    def slice_(peer: Any, seconds: float) -> list[float]:
        with peer.chain(hops) as run:
            return repeat(run, seconds)

    return slice_


def p50_us(times: list[float]) -> float:
    return statistics.median(times) * 1e6


def p99_us(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)] * 1e6


def p50_ms(times: list[float]) -> float:
    return statistics.median(times) * 1e3


def both_ways(size: int) -> Callable[[list[float]], float]:
    """GB/s, there and back together."""
    return lambda times: 2 * size / statistics.median(times) / 1e9


def rate(name: str, bar: Bar) -> Metric:
    return Metric(name, "calls/s", statistics.median, bar, lower_is_better=False)


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "noop",
        "noop",
        noop,
        (Metric("no-op call, p50", "us", p50_us, at_most(0.15)), Metric("no-op call, p99", "us", p99_us)),
    ),
    Workload("echo-1k", "echo", echo(KB), (Metric("1 KB tensor echo, p50", "us", p50_us, at_most(0.25)),)),
    Workload("echo-1m", "echo", echo(MB), (Metric("1 MB tensor echo, p50", "us", p50_us),)),
    Workload(
        "echo-64m",
        "echo",
        echo(64 * MB),
        (Metric("64 MB tensor echo", "GB/s", both_ways(64 * MB), at_least(2), lower_is_better=False),),
    ),
    Workload("async-64", "burst", burst(64), (rate("async calls, 64 in flight", at_least(15)),)),
    Workload("async-1024", "burst", burst(1024), (rate("async calls, 1,024 in flight", at_least(20)),)),
    Workload("threads-8", "noop", threads(8), (rate("calls of 8 threads", at_least(5)),)),
    Workload(
        "nested-200",
        "nest",
        nest(200),
        (Metric("nested calls, depth 200", "ms", p50_ms, at_most(0.5)),),
        instead=(("torch tcp", "torch tcp, 256 threads"), ("torch default", "")),
    ),
    Workload(
        "backward-20",
        "chain",
        backward(20),
        (Metric("backward over 20 hops, p50", "ms", p50_ms, at_most(0.8)),),
    ),
    Workload("fetch", "fetch", fetch, (Metric("remote + to_here, p50", "us", p50_us),)),
)
