"""One process that runs tests, one after another as it is told: `python -m tests.conformance.shard SUITE`.

It writes the names of its tests (`Class.test`) as a line of JSON, then reads such names and writes a line for each
outcome. At the end of its input it ends. Everything that a test starts is in this process's group: what is left of it
after the test is a fault of the test.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import unittest
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, TextIO

from tests.conformance.spawning import start_server

__all__: list[str] = []

SETTLE_SECONDS = 10.0
"""For a test's processes to end after it."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what tests print goes where their errors go
    logging.disable(logging.INFO)
    suite = f"tests.conformance.{sys.argv[1]}"
    start_server(suite)  # it imports beside this process
    suites: dict[str, Any] = import_module(suite).SUITES
    say(answers, tests=names(suites))
    for line in sys.stdin:
        class_name, _, test = line.strip().partition(".")
        say(answers, **run(suites[class_name], test))


def say(answers: TextIO, **what: Any) -> None:
    answers.write(json.dumps(what) + "\n")


def names(suites: dict[str, Any]) -> list[str]:
    loader = unittest.TestLoader()
    return [f"{name}.{test}" for name, cls in suites.items() for test in loader.getTestCaseNames(cls)]


def run(cls: Any, test: str) -> dict[str, Any]:
    sys.stderr.write(f"=== {cls.__name__}.{test}\n")
    sys.stderr.flush()
    result = unittest.TestResult()
    start = time.monotonic()
    unittest.TestSuite([cls(test)]).run(result)
    seconds = round(time.monotonic() - start, 2)
    left = end_processes()
    faults = [text for _, text in result.errors + result.failures]
    if left:
        faults.append(f"{len(left)} processes were left behind: {left}")
    outcome = "failed" if faults else "skipped" if result.skipped else "passed"
    why = "\n".join(faults) if faults else "; ".join(reason for _, reason in result.skipped)
    return {"outcome": outcome, "seconds": seconds, "why": why}


def end_processes() -> list[int]:
    """Wait for what the test has started, and kill what does not end."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := processes():
        if time.monotonic() > deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            return left
        time.sleep(0.02)
    return []


def processes() -> list[int]:
    """Of this process's group, but for itself and for those that multiprocessing keeps."""
    kept = {os.getpid(), forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
    group = os.getpgrp()
    return [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if pid not in kept and is_in(pid, group)
    ]


def is_in(pid: int, group: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    state, pgrp = fields[0], int(fields[2])
    return pgrp == group and state not in "ZX"


if __name__ == "__main__":
    main()
