"""TCP. Addresses are `tcp://host:port`, IPv6 hosts in brackets."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final
from urllib.parse import urlsplit

from rpcgroup.errors import RpcGroupError
from rpcgroup.transport.base import Listener
from rpcgroup.transport.sockets import SocketStream

__all__ = ["TcpTransport"]

_BACKLOG: Final = 1024

# struct tcp_info of linux/tcp.h: offsets of the fields read below.
_TCP_INFO_SIZE: Final = 148
_UNACKED: Final = struct.Struct("24xI")
_LAST_ACK_RECEIVED: Final = struct.Struct("56xI")
_NOT_SENT: Final = struct.Struct("144xI")


class TcpStream(SocketStream):
    """With kernel keep-alive: a host that is gone is noticed, a process that is only busy is left alone.

    Heartbeats in Python would take a peer that holds its interpreter lock for seconds for dead (ADR 0006).
    """

    __slots__ = ()

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def silence(self) -> float:
        """Seconds since the peer's kernel last acknowledged anything.

        0 while data waits for the peer to read it (a zero window): its kernel owes nothing then.
        """
        if sys.platform != "linux":
            return 0.0
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        except OSError:
            return 0.0
        if len(info) < _TCP_INFO_SIZE:
            return 0.0
        in_flight = _UNACKED.unpack_from(info)[0]
        if not in_flight and _NOT_SENT.unpack_from(info)[0]:
            return 0.0
        milliseconds: int = _LAST_ACK_RECEIVED.unpack_from(info)[0]
        return milliseconds / 1000


class TcpListener:
    def __init__(self, sock: socket.socket, host: str) -> None:
        self._socket = sock
        port = sock.getsockname()[1]
        self.address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def accept(self) -> TcpStream:
        sock, _ = self._socket.accept()
        return TcpStream(sock)

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
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as exc:
            raise RpcGroupError(
                f"cannot listen on {host}:{port}: {exc.strerror or exc}. "
                "Choose another port (RPCGROUP_PORT; 0 = any) or address (RPCGROUP_HOST)."
            ) from exc
        return TcpListener(sock, host)

    def connect(self, address: str, timeout: float) -> TcpStream:
        return TcpStream(socket.create_connection(_host_and_port(address), timeout))


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        if parts.scheme == TcpTransport.scheme and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:  # the port is no number
        pass
    raise OSError(f"not a tcp address: {address!r}")
