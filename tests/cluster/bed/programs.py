"""The programs of the test cluster: built once from `tests/cluster/programs`, kept in a cache, found again.

A build of the same sources has the same folder, so that checkouts share it and a changed version never meets
yesterday's programs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["BuildError", "build", "built", "cache"]

MODULE: Final = Path(__file__).parents[1] / "programs"
REPORT_SECONDS: Final = 15.0
LOCK_SECONDS: Final = 3600.0


class BuildError(Exception):
    """The programs are not there or cannot be built; the message says what to do."""


def cache() -> Path:
    """`$RPCGROUP_CACHE`, or `~/.cache/rpcgroup`: what takes long to make and can be made again."""
    return Path(os.environ.get("RPCGROUP_CACHE") or Path.home() / ".cache" / "rpcgroup")


def built() -> Path:
    """The folder with the programs. Raises `BuildError` when they are not built from these sources."""
    folder = _folder()
    if not folder.is_dir():
        _require_go()
        raise BuildError(
            f"the test cluster's programs are not built ({folder} is missing); do: make test-cluster, or "
            "python -m tests.cluster.bed build"
        )
    return folder


def build() -> Path:
    """Build what is not built yet; the folder as in `built`. Raises `BuildError`."""
    folder = _folder()
    if folder.is_dir():
        return folder
    _require_go()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder.parent / "lock"):
        if not folder.is_dir():  # another process may have built it meanwhile
            _build_into(folder)
    return folder


def _folder() -> Path:
    digest = hashlib.sha256()
    for path in sorted(path for path in MODULE.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(MODULE)}\0".encode() + path.read_bytes())
    return cache() / "programs" / digest.hexdigest()[:16]


def _require_go() -> None:
    if shutil.which("go") is None:
        raise BuildError(
            "the test cluster's programs are built from source, and there is no `go` on the PATH; install Go "
            "1.21 or newer (https://go.dev/doc/install), which fetches the version that go.mod names by itself"
        )


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("w") as lock:
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                raise BuildError(f"another process has held {path} for {LOCK_SECONDS:g} s")
            time.sleep(1.0)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build_into(folder: Path) -> None:
    _say("building Kubernetes, etcd and their tools from source: once, about 10 minutes on two idle cores")
    began = time.monotonic()
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        _run([str(MODULE / "build.sh"), str(unfinished)])
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _say(f"built in {time.monotonic() - began:.0f} s into {folder}")


def _run(command: list[str]) -> None:
    """`go build -v` writes a line for each package it compiles, and what went wrong."""
    last, compiled, reported = deque[str](maxlen=30), 0, time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            last.append(line)
            compiled += 1
            if time.monotonic() - reported > REPORT_SECONDS:
                _say(f"{compiled} packages, now {line.strip()}")
                reported = time.monotonic()
    if process.returncode:
        raise BuildError(f"{command[0]} ended with {process.returncode}:\n{''.join(last)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
