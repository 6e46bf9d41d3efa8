"""What `python -m tests.cluster.bed serve` does: hold one cluster until it is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Final

from tests.cluster.bed.cgroups import cgroup
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.forward import forward
from tests.cluster.bed.host_python import write_host_image
from tests.cluster.bed.namespaces import run_inside
from tests.cluster.bed.process import free_port
from tests.cluster.bed.real_node import ADDRESS, RealNode, prepare_machine
from tests.cluster.bed.simulated_nodes import SimulatedNodes

__all__ = ["HOLDER", "READY", "serve", "serve_real"]

HOLDER: Final = "holder"
"""In the cluster's folder: the id of the process that holds it."""
READY: Final = "ready"
"""There when all of the cluster runs."""


def serve(folder: Path, programs: Path, simulated: bool) -> int:
    """A control plane, with simulated nodes or none. Returns 0 after SIGTERM or SIGINT."""
    ending = _ending()
    (folder / HOLDER).write_text(str(os.getpid()))
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(ControlPlane(folder, programs))
        if simulated:
            stack.enter_context(SimulatedNodes(plane))
        (folder / READY).touch()
        ending.wait()
    return 0


def serve_real(folder: Path, programs: Path) -> int:
    """A control plane and a real node in namespaces of their own. Returns the exit code after SIGTERM or SIGINT.

    The API is served outside as well, at the same address, so that one kubeconfig is right on both sides.
    """

    def work() -> None:
        ending = _ending()
        prepare_machine(folder)
        forward(listener, port)
        image = folder / "host.tar"
        write_host_image(image)
        with ControlPlane(folder, programs, port, ADDRESS) as plane, RealNode(plane, group, [image]):
            (folder / READY).touch()
            ending.wait()

    (folder / HOLDER).write_text(str(os.getpid()))
    port = free_port()
    with cgroup() as group, socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        return run_inside(work)


def _ending() -> threading.Event:
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    return ending
