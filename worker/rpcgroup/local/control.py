"""How commands talk to a running driver: one line of JSON there and one back, over a Unix socket.

The socket lies in the group's directory, which only its user can enter: that is its access control.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rpcgroup import errors
from rpcgroup.errors import GroupError, RpcGroupError

__all__ = ["ControlServer", "request"]

MAX_REQUEST: Final = 64 * 1024
"""Bytes; a command is a few words, so more is no command of ours."""
PATIENCE: Final = 2.0
"""Seconds in which a client must have written its line and read its answer: the driver waits meanwhile."""

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class ControlServer:
    """Listens; `serve_one` is called by the driver's loop when the socket is readable."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_name(path) as name:
            self._listener.bind(name)
        self._listener.setblocking(False)
        self._listener.listen(16)

    def fileno(self) -> int:
        return self._listener.fileno()

    def serve_one(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        with client:
            client.settimeout(PATIENCE)
            try:
                answer = self._answer(read_line(client, MAX_REQUEST))
                client.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                return  # the client is gone, or too slow; it is not our trouble

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            question = json.loads(line)
            if not isinstance(question, dict):
                raise ValueError
        except ValueError:
            return refusal(GroupError("expected one line with a JSON object"))
        try:
            return {"answer": self._handler(question)}
        except RpcGroupError as exc:
            return refusal(exc)

    def close(self) -> None:
        self._listener.close()
        self._path.unlink(missing_ok=True)


def refusal(error: RpcGroupError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def request(path: Path, question: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """Ask the driver that listens at `path`. Raises what the driver refused with, or `GroupError`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, short_name(path) as name:
            client.settimeout(timeout)
            client.connect(name)
            client.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(read_line(client))
    except (OSError, ValueError) as exc:
        raise GroupError(
            f"the group's driver does not answer at {path}: {exc or type(exc).__name__}; "
            "is it stopped (Ctrl-Z), or ending?"
        ) from exc
    if "error" in answer:
        kind = getattr(errors, answer["error"], GroupError)
        raise kind(answer["message"])
    result: dict[str, Any] = answer["answer"]
    return result


def read_line(connection: socket.socket, limit: int | None = None) -> bytes:
    """Up to the newline, the end, or the limit."""
    line = b""
    while not line.endswith(b"\n") and (limit is None or len(line) < limit):
        chunk = connection.recv(64 * 1024)
        if not chunk:
            break
        line += chunk
    return line


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for the socket that fits into the 107 bytes the kernel allows, however deep it lies."""
    if len(os.fsencode(path)) <= 107:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
