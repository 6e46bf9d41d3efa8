"""What holds for every test: it leaks nothing, and its random choices can be made again."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker

import hypothesis
import pytest

SETTLE_SECONDS = 5.0
"""How long a test's threads, processes and descriptors may take to go after its last line."""

# The tests run beside each other; torch's threads would only wait for one another's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, max_examples=300)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One seed for the whole run, chosen here and printed at its end, where none was given."""
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(
        f"to choose the same examples again: --hypothesis-seed={config.option.hypothesis_seed}"
    )


@dataclass(frozen=True)
class Holdings:
    """What this process holds at one moment and must give back."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def now(cls) -> Holdings:
        return cls(_threads(), _children(), _descriptors())

    def beyond(self, earlier: Holdings) -> Holdings:
        return Holdings(
            self.threads - earlier.threads,
            self.children - earlier.children,
            self.descriptors - earlier.descriptors,
        )

    def __bool__(self) -> bool:
        return bool(self.threads or self.children or self.descriptors)

    def report(self) -> str:
        lines = [line for thread in self.threads for line in _describe_thread(thread)]
        lines += [f"process {pid}: {_command_line(pid)}" for pid in self.children]
        lines += [f"descriptor {fd}: {target}" for fd, target in sorted(self.descriptors)]
        return "\n".join(lines)


@pytest.fixture(autouse=True)
def leaks_nothing() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or a descriptor that was not there before it."""
    before = Holdings.now()
    yield
    left = Holdings.now().beyond(before)
    if not left:
        return
    gc.collect()
    deadline = time.monotonic() + SETTLE_SECONDS
    pause = threading.Event()
    while (left := Holdings.now().beyond(before)) and time.monotonic() < deadline:
        pause.wait(0.01)
    if left:
        pytest.fail(f"left behind {SETTLE_SECONDS:g} s after the test:\n{left.report()}", pytrace=False)


def _threads() -> frozenset[threading.Thread]:
    """Ours whatever they are; of others those that keep the process alive."""
    return frozenset(t for t in threading.enumerate() if t.name.startswith("rpcgroup-") or not t.daemon)


def _children() -> frozenset[int]:
    """Zombies too. Multiprocessing's own helpers are no test's: they live as long as this process."""
    helpers = {
        getattr(resource_tracker._resource_tracker, "_pid", None),
        getattr(forkserver._forkserver, "_forkserver_pid", None),
    }
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as children:
                found.update(int(pid) for pid in children.read().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return frozenset(found - helpers)


def _descriptors() -> frozenset[tuple[int, str]]:
    helpers = {
        getattr(resource_tracker._resource_tracker, "_fd", None),
        getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
    }
    found: set[tuple[int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # that of the listing itself
            continue
        if int(name) not in helpers and not target.startswith("/dev/"):
            found.add((int(name), target))
    return frozenset(found)


def _describe_thread(thread: threading.Thread) -> list[str]:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.format_stack(frame)[-6:] if frame else ["  (no Python frame)\n"]
    return [f"thread {thread.name}{' (daemon)' if thread.daemon else ''}:", "".join(stack).rstrip()]


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as command:
            return command.read().replace("\0", " ").strip() or "(ended, not waited for)"
    except OSError:
        return "(gone)"


@pytest.fixture(autouse=True)
def log_level_as_it_was() -> Iterator[None]:
    """Commands that run inside this process set the level of the package's log."""
    log = logging.getLogger("rpcgroup")
    level = log.level
    yield
    log.setLevel(level)
