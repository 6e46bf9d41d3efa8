"""`rpcgroup run`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
from rich.console import Console

from rpcgroup.control.manifest import parse_manifest
from rpcgroup.control.model import RPCGroup
from rpcgroup.errors import ManifestError
from rpcgroup.local.report import LineReporter, Reporter
from rpcgroup.local.run import run_group
from rpcgroup.local.view import LiveReporter

__all__ = ["command"]


@click.command("run")
@click.option("-f", "--filename", required=True, type=click.Path(path_type=Path), help="The manifest.")
def command(filename: Path) -> None:
    """Run the group of a manifest on this machine, with an etcd of its own.

    Ctrl-C drains all workers, a second one kills them. The exit code is the job's.
    """
    logging.getLogger("rpcgroup").setLevel(logging.ERROR)  # the driver tells of outages as events
    sys.exit(run_group(read_manifest(filename), filename, open_reporter))


def open_reporter() -> Reporter:
    console = Console()
    return LiveReporter(console) if console.is_terminal else LineReporter(sys.stdout)


def read_manifest(path: Path) -> RPCGroup:
    """Raises `ManifestError`, whose lines begin with the file's name."""
    try:
        return parse_manifest(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file") from None
    except OSError as exc:
        raise ManifestError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ManifestError(
            f"{path}: expected UTF-8 text, got the byte {exc.object[exc.start]:#04x}"
        ) from exc
    except ManifestError as exc:
        raise ManifestError("\n".join(f"{path}: {line}" for line in str(exc).splitlines())) from exc
