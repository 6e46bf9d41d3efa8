"""PyTorch's own RPC suite, from the installed wheel, on this package: `python -m tests.conformance --help`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click

from tests.conformance.report import Outcome, beside, junit, read_expected, score, table, unexpected
from tests.conformance.swapped import ENV_EMULATED, ENV_STOCK

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITES = ("tensorpipe", "faulty")
START_SECONDS = 120.0
ON_DEVICES = r"(?i)cuda(?!.*test_owner_rref_forward)"
"""What is run on emulated devices: those four multiply matrices that take a processor minutes."""


class Shard:
    """A process that runs tests of one suite; started anew after one that has to be killed."""

    def __init__(self, suite: str, log: Path, timeout: float) -> None:
        self._suite = suite
        self._log = log.open("ab")
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> list[str]:
        """The tests of its suite."""
        self._process = start_shard(self._suite, self._log)
        tests: list[str] = read_line(self._process, START_SECONDS)["tests"]
        return tests

    def run(self, name: str) -> Outcome:
        start = time.monotonic()
        begin = os.fstat(self._log.fileno()).st_size
        try:
            if self._process is None:
                self.start()
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            answer = read_line(self._process, self._timeout)
        except (OSError, TimeoutError) as exc:
            self.end()
            answer = {"outcome": "failed", "why": f"the process that runs the tests: {exc}"}
        log = Path(self._log.name).read_bytes()[begin:].decode(errors="replace")
        seconds = answer.get("seconds", time.monotonic() - start)
        return Outcome(name, answer["outcome"], seconds, answer["why"], log[-20000:])

    def end(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def start_shard(suite: str, log: IO[bytes]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.conformance.shard", suite],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def read_line(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    """The next answer; raises `TimeoutError`, and `OSError` where the process has ended."""
    assert process.stdout is not None
    lines: list[str] = []
    output = process.stdout
    reader = threading.Thread(target=lambda: lines.append(output.readline()), daemon=True)
    reader.start()
    reader.join(timeout)
    if not lines:
        raise TimeoutError(f"no answer within {timeout:.0f} s")
    if not lines[0]:
        raise OSError(f"it ended with {process.wait()}")
    answer: dict[str, Any] = json.loads(lines[0])
    return answer


class Run:
    """Tests of all suites, by as many processes at a time; each goes on with another suite when its own is through."""

    def __init__(self, shards: int, timeout: float, folder: Path) -> None:
        self._numbers = range(max(shards, 1))
        self._timeout = timeout
        self._folder = folder
        self._shards: dict[tuple[int, str], Shard] = {}
        self._waiting: dict[str, deque[str]] = {}
        self._outcomes: dict[str, Outcome] = {}

    def tests(self) -> list[tuple[str, str]]:
        """Of all suites, as (suite, test); starts a process for each, which is kept."""
        found: dict[str, list[str]] = {}

        def start(number: int, suite: str) -> None:
            found[suite] = self._shard(number % len(self._numbers), suite).start()

        in_threads(start, list(enumerate(SUITES)))
        return [(suite, test) for suite in SUITES for test in found[suite]]

    def run(self, tests: list[tuple[str, str]]) -> list[Outcome]:
        for suite, test in tests:
            self._waiting.setdefault(suite, deque()).append(test)
        in_threads(self._work, [(number,) for number in self._numbers])
        return [self._outcomes[test] for _, test in tests]

    def end(self) -> None:
        for shard in self._shards.values():
            shard.end()

    def _work(self, number: int) -> None:
        """The suites in turn, from one of its own on."""
        suites = SUITES[number % len(SUITES) :] + SUITES[: number % len(SUITES)]
        for suite in suites:
            waiting = self._waiting.get(suite, deque())
            while waiting:
                try:
                    test = waiting.popleft()
                except IndexError:
                    break
                self._told(self._shard(number, suite).run(test))
            if (number, suite) in self._shards:
                self._shards.pop((number, suite)).end()

    def _shard(self, number: int, suite: str) -> Shard:
        if (number, suite) not in self._shards:
            log = self._folder / f"{suite}-{number}.log"
            self._shards[number, suite] = Shard(suite, log, self._timeout)
        return self._shards[number, suite]

    def _told(self, outcome: Outcome) -> None:
        self._outcomes[outcome.name] = outcome
        if outcome.outcome != "skipped":
            click.echo(f"{len(self._outcomes):4} {outcome.seconds:6.1f} s  {outcome.outcome}  {outcome.name}")


def in_threads(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    threads = [threading.Thread(target=target, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Tests whose name matches this pattern; may be repeated.")
@click.option("--rerun-failed", is_flag=True, help="Those that failed in the last run.")
@click.option("--stock", is_flag=True, help="On torch's own RPC.")
@click.option(
    "--emulated", is_flag=True, help="With CUDA's devices emulated: docs/gpu.md tells what that shows."
)
@click.option(
    "--beside",
    "stock_results",
    type=click.Path(path_type=Path, exists=True),
    help="The results.json of a run with --stock on this machine: what fails there may fail here.",
)
@click.option("--shards", default=2, show_default=True, help="Processes that run tests at a time.")
@click.option("--timeout", default=90, show_default=True, help="Seconds for one test.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=Path("/tmp/rpcgroup-conformance"), show_default=True
)
@click.option("--show", is_flag=True, help="Show why tests failed.")
def main(
    only: tuple[str, ...],
    rerun_failed: bool,
    stock: bool,
    emulated: bool,
    stock_results: Path | None,
    shards: int,
    timeout: int,
    results: Path,
    show: bool,
) -> None:
    os.environ["DISTRIBUTED_TESTS_DEFAULT_TIMEOUT"] = str(timeout - 20)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if stock:
        os.environ[ENV_STOCK] = "1"
    if emulated:
        if stock:
            raise click.UsageError("torch's own RPC is C++, and finds no emulated devices")
        os.environ[ENV_EMULATED] = "1"
        only = only or (ON_DEVICES,)
    results.mkdir(parents=True, exist_ok=True)
    last = results / "results.json"
    run = Run(shards, timeout, results)
    try:
        outcomes = run.run(chosen(run.tests(), only, last if rerun_failed else None))
    finally:
        run.end()
    expected = {} if stock else read_expected(HERE / "expected_failures.txt")
    if emulated:
        expected |= read_expected(HERE / "expected_failures_emulated.txt")
    last.write_text(json.dumps([o.as_dict() for o in outcomes], indent=1))
    (results / "junit.xml").write_bytes(junit(outcomes))
    click.echo(table(outcomes, expected))
    if not emulated:
        click.echo(score(outcomes))
    if stock_results is not None:
        outcomes = beside(outcomes, [Outcome(**o) for o in json.loads(stock_results.read_text())])
        passed = sum(o.outcome == "passed" for o in outcomes)
        click.echo(f"of the {len(outcomes)} that torch's own RPC passes on this machine {passed} pass")
    faults = unexpected(outcomes, expected)
    for line in faults:
        click.echo(line)
    if show:
        for o in outcomes:
            if o.outcome == "failed":
                click.echo(f"\n=== {o.name}\n{o.why}")
    sys.exit(1 if faults else 0)


def chosen(tests: list[tuple[str, str]], only: tuple[str, ...], last: Path | None) -> list[tuple[str, str]]:
    if only:
        tests = [(suite, name) for suite, name in tests if any(re.search(pattern, name) for pattern in only)]
    if last is not None:
        failed = {o["name"] for o in json.loads(last.read_text()) if o["outcome"] == "failed"}
        tests = [(suite, name) for suite, name in tests if name in failed]
    return tests


if __name__ == "__main__":
    main()
