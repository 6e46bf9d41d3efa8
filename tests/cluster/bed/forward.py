"""Serves a port of this network on a socket that was opened in another one."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["forward"]


def forward(listener: socket.socket, port: int) -> None:
    """Hand every connection of `listener` to `port` of the loopback interface, in threads that end with the process.

    A connection that `port` refuses is closed.
    """
    threading.Thread(target=_serve, args=(listener, port), daemon=True).start()


def _serve(listener: socket.socket, port: int) -> None:
    while True:
        outer, _ = listener.accept()
        try:
            inner = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            outer.close()
            continue
        inner.settimeout(None)
        for pair in ((outer, inner), (inner, outer)):
            threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(64 * 1024):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
