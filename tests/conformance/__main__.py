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
from pathlib import Path
from typing import IO, Any

import click

from tests.conformance.report import Outcome, junit, read_expected, table, unexpected
from tests.conformance.swapped import ENV_STOCK

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITES = ("tensorpipe", "faulty")
START_SECONDS = 120.0


class Shard:
    """A process that runs tests of one suite; started anew after one that has to be killed."""

    def __init__(self, suite: str, log: Path, timeout: float) -> None:
        self._suite = suite
        self._log = log.open("ab")
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def run(self, name: str) -> Outcome:
        start = time.monotonic()
        begin = os.fstat(self._log.fileno()).st_size
        try:
            if self._process is None:
                self._process = start_shard(self._suite, self._log)
                read_line(self._process, START_SECONDS)
            assert self._process.stdin is not None
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            answer = read_line(self._process, self._timeout)
        except (OSError, TimeoutError) as exc:
            self.end()
            answer = {"outcome": "failed", "why": f"the process that runs the tests: {exc}"}
        log = Path(self._log.name).read_bytes()[begin:].decode(errors="replace")
        return Outcome(name, answer["outcome"], time.monotonic() - start, answer["why"], log[-20000:])

    def end(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def start_shard(suite: str, log: IO[bytes] | int, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.conformance.shard", suite, *args],
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
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)
    reader.start()
    reader.join(timeout)
    if not lines:
        raise TimeoutError(f"no answer within {timeout:.0f} s")
    if not lines[0]:
        raise OSError(f"it ended with {process.wait()}")
    answer: dict[str, Any] = json.loads(lines[0])
    return answer


def list_tests(suite: str) -> list[str]:
    process = start_shard(suite, subprocess.DEVNULL, "--list")
    try:
        tests: list[str] = read_line(process, START_SECONDS)["tests"]
    finally:
        process.communicate()
    return tests


def run_all(tests: list[tuple[str, str]], shards: int, timeout: float, logs: Path) -> list[Outcome]:
    """All of these (suite, test), by as many processes at a time."""
    waiting = deque(tests)
    outcomes: dict[str, Outcome] = {}

    def work(number: int) -> None:
        mine: dict[str, Shard] = {}
        while waiting:
            try:
                suite, name = waiting.popleft()
            except IndexError:
                break
            if suite not in mine:
                for other in mine.values():
                    other.end()
                mine = {suite: Shard(suite, logs / f"{suite}-{number}.log", timeout)}
            outcome = outcomes[name] = mine[suite].run(name)
            if outcome.outcome != "skipped":
                click.echo(f"{len(outcomes):4} {outcome.seconds:6.1f} s  {outcome.outcome}  {name}")
        for shard in mine.values():
            shard.end()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(shards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[name] for _, name in tests]


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Tests whose name matches this pattern; may be repeated.")
@click.option("--rerun-failed", is_flag=True, help="Those that failed in the last run.")
@click.option("--stock", is_flag=True, help="On torch's own RPC.")
@click.option("--shards", default=2, show_default=True, help="Processes that run tests at a time.")
@click.option("--timeout", default=90, show_default=True, help="Seconds for one test.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("/tmp/rpcgroup-conformance"), show_default=True)
@click.option("--show", is_flag=True, help="Show why tests failed.")
def main(
    only: tuple[str, ...], rerun_failed: bool, stock: bool, shards: int, timeout: int, results: Path, show: bool
) -> None:
    os.environ["DISTRIBUTED_TESTS_DEFAULT_TIMEOUT"] = str(timeout - 20)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if stock:
        os.environ[ENV_STOCK] = "1"
    results.mkdir(parents=True, exist_ok=True)
    last = results / "results.json"
    tests = [(suite, name) for suite in SUITES for name in list_tests(suite)]
    if only:
        tests = [(suite, name) for suite, name in tests if any(re.search(pattern, name) for pattern in only)]
    if rerun_failed:
        failed = {o["name"] for o in json.loads(last.read_text()) if o["outcome"] == "failed"}
        tests = [(suite, name) for suite, name in tests if name in failed]
    expected = {} if stock else read_expected(HERE / "expected_failures.txt")
    outcomes = run_all(tests, shards, timeout, results)
    last.write_text(json.dumps([o.as_dict() for o in outcomes], indent=1))
    (results / "junit.xml").write_bytes(junit(outcomes))
    click.echo(table(outcomes, expected))
    faults = unexpected(outcomes, expected)
    for line in faults:
        click.echo(line)
    if show:
        for o in outcomes:
            if o.outcome == "failed":
                click.echo(f"\n=== {o.name}\n{o.why}\n--- log\n{o.log}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
