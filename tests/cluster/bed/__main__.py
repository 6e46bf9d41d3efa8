"""The test cluster for people: `python -m tests.cluster.bed up|status|exec|down|build`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import click

from tests.cluster.bed import programs
from tests.cluster.bed.access import CommandError
from tests.cluster.bed.process import StartError
from tests.cluster.bed.real_cluster import inside
from tests.cluster.bed.real_node import RequirementError, check_requirements
from tests.cluster.bed.serve import HOLDER, READY, serve, serve_real

UP_SECONDS: Final = 180.0
DOWN_SECONDS: Final = 60.0

folder_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=programs.cache() / "bed",
    show_default=True,
    help="Data, keys, kubeconfigs and logs; each folder is a cluster of its own.",
)
kwok_option = click.option("--kwok", is_flag=True, help="With three simulated nodes.")
real_option = click.option("--real", is_flag=True, help="With one node that runs real pods; needs root.")


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
def build() -> None:
    """Build the programs if these sources have not been built yet."""
    click.echo(_programs())


@main.command()
@folder_option
@kwok_option
@real_option
def up(folder: Path, kwok: bool, real: bool) -> None:
    """Start a cluster that runs until `down`."""
    found = _programs()
    if _holder(folder):
        raise click.ClickException(f"a cluster runs in {folder}; do: python -m tests.cluster.bed down")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = [*(["--kwok"] if kwok else []), *(["--real"] if real else [])]
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.bed", "serve", "--dir", str(folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + UP_SECONDS
    while not (folder / READY).exists():
        if server.poll() is not None or time.monotonic() > deadline:
            server.terminate()
            raise click.ClickException("it does not start:\n" + (folder / "serve.log").read_text())
        time.sleep(0.05)
    click.echo(f"export KUBECONFIG={folder / 'admin.kubeconfig'} PATH={found}:$PATH")


@main.command()
@folder_option
def down(folder: Path) -> None:
    """Stop the cluster and remove its folder."""
    pid = _running(folder)
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
    """The process that holds the cluster, and its programs."""
    pid = _running(folder)
    family = ",".join(map(str, _family(pid)))
    subprocess.run(["ps", "--forest", "-o", "pid,rss,time,comm", "-p", family], check=False)


@main.command("exec", context_settings={"ignore_unknown_options": True})
@folder_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(folder: Path, command: tuple[str, ...]) -> None:
    """Run COMMAND where the pods of a cluster with --real have addresses."""
    line = inside(_running(folder), *command)
    os.execvp(line[0], line)


@main.command("serve", hidden=True)
@folder_option
@kwok_option
@real_option
def serve_command(folder: Path, kwok: bool, real: bool) -> None:
    try:
        if real:
            check_requirements()
            sys.exit(serve_real(folder, programs.built()))
        sys.exit(serve(folder, programs.built(), simulated=kwok))
    except (StartError, CommandError, RequirementError, programs.BuildError) as exc:
        raise click.ClickException(str(exc)) from exc


def _programs() -> Path:
    try:
        return programs.build()
    except programs.BuildError as exc:
        raise click.ClickException(str(exc)) from exc


def _running(folder: Path) -> int:
    pid = _holder(folder)
    if pid is None:
        raise click.ClickException(f"no cluster runs in {folder}")
    return pid


def _holder(folder: Path) -> int | None:
    """The process that holds the cluster of this folder, if it lives."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / HOLDER).read_text())
        if b"tests.cluster.bed" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _family(pid: int) -> list[int]:
    """It, its children and theirs."""
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            children += (task / "children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]


if __name__ == "__main__":
    main()
