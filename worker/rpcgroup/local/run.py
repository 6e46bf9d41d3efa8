"""A whole run of a group on this machine, from a manifest's group to an exit code."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from rpcgroup.control.model import RPCGroup
from rpcgroup.local.commands import answer
from rpcgroup.local.control import ControlServer
from rpcgroup.local.directory import GroupDirectory, state_root
from rpcgroup.local.driver import LocalDriver
from rpcgroup.local.etcd_server import EtcdServer
from rpcgroup.local.report import Reporter
from rpcgroup.local.template import require_commands
from rpcgroup.local.wakeup import Wakeup, collecting
from rpcgroup.membership.etcd.credentials import EtcdCredentials
from rpcgroup.membership.url import open_rendezvous

__all__ = ["run_group"]


def run_group(group: RPCGroup, manifest: Path, open_reporter: Callable[[], Reporter]) -> int:
    """Run it to its end; the job's exit code (0: complete), or 128 + the signal that stopped it.

    Raises `ManifestError` for what this machine cannot run, `GroupError` where the group runs already or etcd
    cannot be started.
    """
    require_commands(group)
    name, namespace = group.metadata.name, group.metadata.namespace
    directory = GroupDirectory(state_root(), namespace, name)
    with directory.claimed(), EtcdServer(directory.etcd) as etcd:
        directory.write_secret()
        url = f"etcd://{etcd.endpoint}/{namespace}/{name}"
        facts = {
            "pid": os.getpid(),
            "startedAt": time.time(),
            "manifest": str(manifest.resolve()),
            "rendezvous": url,
            "logs": str(directory.logs),
        }
        directory.write_state(**facts)
        with (
            closing(open_rendezvous(url, credentials=EtcdCredentials())) as rendezvous,
            closing(open_reporter()) as reporter,
            closing(Wakeup()) as wakeup,
        ):
            driver = LocalDriver(group, directory, etcd, rendezvous, reporter, wakeup, facts)
            driver.event(name, f"etcd at {etcd.endpoint}, logs in {directory.logs}")
            with (
                closing(ControlServer(directory.socket, partial(answer, driver))) as control,
                collecting(wakeup, signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
            ):
                return driver.run(control, signals)
