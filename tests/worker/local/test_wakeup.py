from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rpcgroup.local.wakeup import Wakeup, collecting


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    wakeup = Wakeup()
    yield wakeup
    wakeup.close()


def is_set(wakeup: Wakeup, seconds: float = 0.0) -> bool:
    return bool(select.select([wakeup], [], [], seconds)[0])


def test_many_calls_are_one_wake(wakeup: Wakeup) -> None:
    assert not is_set(wakeup)
    for _ in range(10_000):
        wakeup.set()
    assert is_set(wakeup)
    wakeup.clear()
    assert not is_set(wakeup)


def test_signals_wake_and_are_kept_in_order(wakeup: Wakeup) -> None:
    with collecting(wakeup, signal.SIGUSR1, signal.SIGUSR2) as received:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert is_set(wakeup, 10.0)
        assert sorted(received) == [signal.SIGUSR1, signal.SIGUSR2]


def test_the_end_of_a_child_wakes(wakeup: Wakeup) -> None:
    with collecting(wakeup) as received:
        child = subprocess.Popen([sys.executable, "-c", ""])
        assert is_set(wakeup, 30.0)
        child.wait()
        assert not received


def test_the_handlers_before_are_put_back(wakeup: Wakeup) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with collecting(wakeup, signal.SIGUSR1):
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
