"""TCP. Addresses are `tcp://host:port`, IPv6 hosts in brackets."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from rpcgroup.errors import RpcGroupError
from rpcgroup.transport.base import Listener, Stream
from rpcgroup.transport.sockets import SocketStream

__all__ = ["TcpTransport"]

_BACKLOG: Final = 1024

KEEP_ALIVE_SECONDS: Final = 1
"""After that long without traffic the kernel asks the peer's kernel for a sign of life."""
ROUND_TRIP: Final = 0.25
"""Seconds: an answer to that question may be under way for as long."""

LOCAL_SEND_BUFFER: Final = 256 << 10
"""Bytes, to a peer on the same host: what is under way stays in the processor's cache. Elsewhere the kernel chooses."""

# struct tcp_info of linux/tcp.h: the fields read below.
_TCP_INFO: Final = struct.Struct("2xBB20xI28xI84xI")
"""retransmits, probes, unacked (segments), last_ack_recv (ms), notsent_bytes"""


class TcpStream(SocketStream):
    """With kernel keep-alive: a host that is gone is noticed, a process that is only busy is left alone.

    Heartbeats in Python would take a peer that holds its interpreter lock for seconds for dead (ADR 0006).
    """

    __slots__ = ()

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if _is_local(sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SEND_BUFFER)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def silence(self) -> float:
        if sys.platform != "linux":
            return 0.0
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        except OSError:
            return 0.0
        return owed_silence(info)


def _is_local(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:  # the peer has gone again; the first read will tell
        return False


def owed_silence(info: bytes) -> float:
    """From a `tcp_info`: seconds since the peer's kernel has acknowledged anything, where it should have.

    It should where data had to be sent again, or where a question for a sign of life was out for longer than
    its answer may take. Data that waits for the peer to read (a zero window) asks for nothing.
    """
    if len(info) < _TCP_INFO.size:
        return 0.0
    retransmits, probes, unacked, last_ack, not_sent = _TCP_INFO.unpack_from(info)
    silence: float = last_ack / 1000
    if not unacked and not_sent:
        return 0.0
    if retransmits or (probes and silence > KEEP_ALIVE_SECONDS + ROUND_TRIP):
        return silence
    return 0.0


class TcpListener:
    """`stream` makes one of each socket that arrives."""

    def __init__(
        self, sock: socket.socket, host: str, scheme: str, stream: Callable[[socket.socket], Stream]
    ) -> None:
        self._socket = sock
        self._stream = stream
        port = sock.getsockname()[1]
        self.address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def accept(self) -> Stream:
        sock, _ = self._socket.accept()
        return self._stream(sock)

    def forget(self) -> None:
        self._socket.close()

    def close(self) -> None:
        # shutdown wakes a thread blocked in accept; close alone does not.
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class TcpTransport:
    scheme = "tcp"

    def listen(self, host: str, port: int) -> Listener:
        """Raises `RpcGroupError` where the address cannot be listened on."""
        return TcpListener(listen_on(host, port), host, self.scheme, TcpStream)

    def connect(self, address: str, timeout: float) -> TcpStream:
        return TcpStream(dial(self.scheme, address, timeout))


def listen_on(host: str, port: int) -> socket.socket:
    """Raises `RpcGroupError` where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as exc:
        raise RpcGroupError(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}. "
            "Choose another port (RPCGROUP_PORT; 0 = any) or address (RPCGROUP_HOST)."
        ) from exc


def dial(scheme: str, address: str, timeout: float) -> socket.socket:
    """A connection to `scheme://host:port`; an address of another scheme is an `OSError`."""
    return socket.create_connection(_host_and_port(scheme, address), timeout)


def _host_and_port(scheme: str, address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        if parts.scheme == scheme and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:  # the port is no number
        pass
    raise OSError(f"not a {scheme} address: {address!r}")
