"""The test cluster for people: `python -m tests.cluster.bed up|down|status|build`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import click

from tests.cluster.bed import programs
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.process import StartError
from tests.cluster.bed.simulated_nodes import SimulatedNodes

UP_SECONDS: Final = 120.0
DOWN_SECONDS: Final = 60.0
READY: Final = "ready"
"""In the cluster's folder when all of it runs: the process that holds it."""

folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=programs.cache() / "bed",
    show_default=True,
    help="Data, keys, kubeconfigs and logs; a cluster of its own for each folder.",
)
kwok_option = click.option("--kwok", is_flag=True, help="With three simulated nodes.")


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
def build() -> None:
    """Build the programs if these sources have not been built yet."""
    click.echo(_build())


@main.command()
@folder_option
@kwok_option
def up(folder: Path, kwok: bool) -> None:
    """Start a cluster that runs until `down`."""
    _build()
    if _holder(folder):
        raise click.ClickException(f"a cluster runs in {folder}; do: python -m tests.cluster.bed down")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.cluster.bed", "serve", "--dir", str(folder)]
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, *(["--kwok"] if kwok else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + UP_SECONDS
    while not (folder / READY).exists():
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise click.ClickException((folder / "serve.log").read_text())
        time.sleep(0.05)
    click.echo(f"export KUBECONFIG={folder / 'admin.kubeconfig'} PATH={programs.built()}:$PATH")


@main.command()
@folder_option
def down(folder: Path) -> None:
    """Stop the cluster and remove its folder."""
    pid = _holder(folder)
    if pid is None:
        raise click.ClickException(f"no cluster runs in {folder}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while _holder(folder):
        if time.monotonic() > deadline:
            raise click.ClickException(f"process {pid} has not ended after {DOWN_SECONDS:g} s")
        time.sleep(0.05)
    shutil.rmtree(folder)


@main.command()
@folder_option
def status(folder: Path) -> None:
    """The programs that run, with their memory. Exit code 1 when none do."""
    pid = _holder(folder)
    if pid is None:
        raise click.ClickException(f"no cluster runs in {folder}")
    subprocess.run(["ps", "-o", "pid,rss,etime,comm", "-p", str(pid), "--ppid", str(pid)], check=True)


@main.command(hidden=True)
@folder_option
@kwok_option
def serve(folder: Path, kwok: bool) -> None:
    """Hold the cluster until SIGTERM; its programs are this process's children."""
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with contextlib.ExitStack() as stack:
        try:
            plane = stack.enter_context(ControlPlane(folder, programs.built()))
            if kwok:
                stack.enter_context(SimulatedNodes(plane))
        except StartError as exc:
            raise click.ClickException(str(exc)) from exc
        (folder / READY).write_text(str(os.getpid()))
        ending.wait()


def _holder(folder: Path) -> int | None:
    """The process that holds the cluster of this folder, if it lives."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / READY).read_text())
        if b"tests.cluster.bed" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _build() -> Path:
    try:
        return programs.build()
    except programs.BuildError as exc:
        raise click.ClickException(str(exc)) from exc


if __name__ == "__main__":
    main()
