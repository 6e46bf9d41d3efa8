"""Is what calls, futures, references and gradients do on devices in order? Random histories, checked without a GPU.

`RPCGROUP_STREAM_HISTORIES` says how many, `RPCGROUP_STREAM_FIRST` which is the first: a failure tells its number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Final, NamedTuple

import pytest

from rpcgroup.agent import accelerator
from rpcgroup.cuda import completions, inbound, outbound, sharing
from rpcgroup.cuda import runtime as cuda_runtime
from rpcgroup.cuda.staging import PinnedPool
from rpcgroup.testing.recording_device import RecordingDevice
from rpcgroup.testing.recording_ipc import RecordingIpc
from tests.worker.agent.stream_bugs import BUGS, Bug
from tests.worker.agent.stream_histories import World, run_history

HISTORIES: Final = int(os.environ.get("RPCGROUP_STREAM_HISTORIES", "20"))
FIRST: Final = int(os.environ.get("RPCGROUP_STREAM_FIRST", "0"))
OF_ONE_WORLD: Final = 8
UNTIL_CAUGHT: Final = 40
"""Histories, of those with a seeded bug."""
POOL: Final = 32
"""Streams of each device and priority: one that is used again is ordered by chance."""
CHUNK: Final = 256
SMALL: Final = 64
"""Bytes, so that small tensors are of several chunks, and some go through ordinary memory."""
BLOCKS: Final = 64
"""Chunks of pinned memory of each worker."""


@pytest.fixture(autouse=True)
def as_it_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small chunks; and what waits for the end of a copy looks late: what the host has seen is in order."""
    monkeypatch.setattr(accelerator, "PinnedPool", partial(PinnedPool, limit=BLOCKS * CHUNK, chunk=CHUNK))
    for module in (inbound, outbound, sharing):
        monkeypatch.setattr(module, "SMALL", SMALL)
    monkeypatch.setattr(completions, "SHORTEST_POLL", completions.LONGEST_POLL)


@contextmanager
def recording(number: int) -> Iterator[RecordingDevice]:
    """For the world of that number; it is not checked at its end."""
    device = RecordingDevice(2 + number % 2, POOL)
    if number % 3 == 1:
        device.shared_memory = RecordingIpc(device)
    before = cuda_runtime.current_runtime()
    cuda_runtime.use_runtime(device)
    try:
        yield device
    finally:
        cuda_runtime.use_runtime(before)


class Wrong(NamedTuple):
    history: int
    violations: list[str]
    error: Exception | None = None


def run_histories(first: int, count: int) -> Wrong | None:
    """The first that goes wrong; None where none does."""
    for number, histories in groupby(range(first, first + count), lambda history: history // OF_ONE_WORLD):
        with recording(number) as device, World(device, number).running() as world:
            for history in histories:
                try:
                    run_history(world, history)
                except Exception as exc:
                    return Wrong(history, device.violations, exc)
                if device.violations:
                    return Wrong(history, device.violations)
        if device.violations:
            return Wrong(history, device.violations)
    return None


def test_random_histories_are_in_order() -> None:
    wrong = run_histories(FIRST, HISTORIES)
    if wrong is not None:
        again = f"RPCGROUP_STREAM_HISTORIES=1 RPCGROUP_STREAM_FIRST={wrong.history}"
        lines = "\n".join(wrong.violations[:20])
        raise AssertionError(f"history {wrong.history} (again with {again}): {lines}") from wrong.error


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    wrong = run_histories(0, UNTIL_CAUGHT)
    assert wrong is not None
    assert wrong.violations or isinstance(wrong.error, AssertionError), wrong.error
