"""What `python -m tests.cluster.bed serve` does: hold one cluster until it is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.cluster.bed.cgroups import cgroup
from tests.cluster.bed.control_plane import ControlPlane
from tests.cluster.bed.forward import forward
from tests.cluster.bed.host_python import write_host_image
from tests.cluster.bed.namespaces import run_inside
from tests.cluster.bed.process import Program, free_port
from tests.cluster.bed.real_node import ADDRESS, RealNode, prepare_machine
from tests.cluster.bed.simulated_nodes import SimulatedNodes

__all__ = ["API_SERVER_DOWN", "API_SERVER_UP", "HOLDER", "READY", "serve", "serve_real"]

HOLDER: Final = "holder"
"""In the cluster's folder: the id of the process that holds it."""
READY: Final = "ready"
"""There while all of the cluster runs."""

# Signals to the holder.
API_SERVER_DOWN: Final = signal.SIGUSR1
"""Kill the API server."""
API_SERVER_UP: Final = signal.SIGUSR2
"""Start it again, with what it had stored, and then those that watch it."""
END: Final = (signal.SIGTERM, signal.SIGINT)


def serve(folder: Path, programs: Path, simulated: bool) -> int:
    """A control plane, with simulated nodes or none. Returns 0 after SIGTERM or SIGINT."""
    orders = _orders()
    (folder / HOLDER).write_text(str(os.getpid()))
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(ControlPlane(folder, programs))
        if simulated:
            stack.enter_context(SimulatedNodes(plane))
        (folder / READY).touch()
        _obey(orders, plane)
    return 0


def serve_real(folder: Path, programs: Path) -> int:
    """A control plane and a real node in namespaces of their own. Returns the exit code after SIGTERM or SIGINT.

    The API is served outside as well, at the same address, so that one kubeconfig is right on both sides.
    """

    def work() -> None:
        orders = _orders()
        prepare_machine(folder)
        forward(listener, port)
        image = folder / "host.tar"
        write_host_image(image)
        with ControlPlane(folder, programs, port, ADDRESS) as plane, RealNode(plane, group, [image]) as node:
            (folder / READY).touch()
            _obey(orders, plane, *node.clients)

    (folder / HOLDER).write_text(str(os.getpid()))
    port = free_port()
    with cgroup() as group, socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        return run_inside(work)


def _orders() -> SimpleQueue[int]:
    """The signals that come."""
    orders: SimpleQueue[int] = SimpleQueue()
    for number in (API_SERVER_DOWN, API_SERVER_UP, *END):
        signal.signal(number, lambda got, _: orders.put(got))
    return orders


def _obey(orders: SimpleQueue[int], plane: ControlPlane, *clients: Program) -> None:
    """Until one says END. `clients` watch the API server."""
    while (order := orders.get()) not in END:
        if order == API_SERVER_DOWN:
            (plane.folder / READY).unlink()
            plane.api_server.kill()
        else:
            plane.restart_api_server(*clients)
            (plane.folder / READY).touch()
