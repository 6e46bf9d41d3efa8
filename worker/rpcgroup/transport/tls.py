"""TLS 1.3 over TCP, with certificates on both sides. Addresses are `tls://host:port` (ADR 0011).

OpenSSL's object for a connection must not be used by two threads at once, and one that blocks would keep the other
out. So it works in memory, under a lock for each short step, and the threads move its bytes outside: one sends
while another waits for what arrives.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rpcgroup.errors import HandshakeError
from rpcgroup.transport.base import READ_TIMEOUT, Buffer, Listener
from rpcgroup.transport.credentials import TlsCredentials, check_peer, in_words
from rpcgroup.transport.tcp import TcpListener, TcpStream, dial, listen_on

__all__ = ["TlsTransport"]

PLAIN: Final = 16 << 10
"""Bytes that a record can hold."""
RECORD: Final = PLAIN + 256 + 5
"""Bytes of the largest record on its way (RFC 8446, section 5.2)."""
CHUNK: Final = 128 << 10
"""Bytes that are encrypted or decrypted at once."""
WELCOME: Final = b"\1"
"""The listener's first byte. A dialer is through before the listener has seen its certificate (RFC 8446, 4.4.4)."""


class TlsStream:
    """Connected by TCP; `handshake` comes before all else."""

    __slots__ = (
        "_ahead",
        "_dialled",
        "_incoming",
        "_kept",
        "_lock",
        "_name",
        "_outgoing",
        "_patience",
        "_read",
        "_socket_recv",
        "_socket_send",
        "_tls",
        "_unsent",
        "_wire",
        "_write",
        "close",
        "fileno",
        "forget",
        "shutdown",
        "silence",
        "wait_readable",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str, *, dialled: bool) -> None:
        self._wire = wire = TcpStream(sock)
        self._name = name
        self._dialled = dialled
        self._lock = threading.Lock()  # guards _tls, _incoming, _outgoing
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialled)
        # Bound methods as attributes: the hot path saves a look-up each.
        self._read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]
        self._write = self._tls.write
        self._socket_recv = sock.recv
        self._socket_send = sock.send
        self._unsent: bytes | memoryview = b""
        """The sender's: encrypted, and not in the kernel yet."""
        self._ahead = 0
        """The sender's: bytes that are encrypted and that it has not been told were taken."""
        self._patience = READ_TIMEOUT
        """The reader's: seconds for the rest of a record."""
        self._kept = False
        """The reader's: the first byte in the kernel has been decrypted already."""
        self.fileno = wire.fileno
        self.wait_readable = wire.wait_readable
        self.silence = wire.silence
        self.forget = wire.forget
        self.shutdown = wire.shutdown
        self.close = wire.close

    def set_handshake_timeout(self, timeout: float | None) -> None:
        self._patience = READ_TIMEOUT if timeout is None else timeout
        self._wire.set_handshake_timeout(timeout)

    # -- the handshake ------------------------------------------------------------------------------------

    def handshake(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._agree(deadline)
            check_peer(self._tls, self._name)
            self._limit(deadline)
            if not self._dialled:
                self.send(WELCOME)
            elif not self.receive(memoryview(bytearray(len(WELCOME)))):
                raise _broken_off()
        except ssl.SSLError as exc:
            raise HandshakeError(in_words(exc)) from exc
        except BlockingIOError:
            raise _late() from None
        self.set_handshake_timeout(None)

    def _agree(self, deadline: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._say_last()
                raise
            else:
                self._say(deadline)
                return
            self._say(deadline)
            self._limit(deadline)
            data = self._socket_recv(RECORD)
            if not data:
                raise _broken_off()
            self._incoming.write(data)

    def _say(self, deadline: float) -> None:
        data = memoryview(self._outgoing.read())
        while data:
            self._limit(deadline)
            data = data[self._wire.send(data) :]

    def _say_last(self) -> None:
        """What is wrong, to the peer, if it can be told without waiting."""
        try:
            self._wire.try_send(self._outgoing.read())
        except OSError:
            pass

    def _limit(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise _late()
        self.set_handshake_timeout(max(remaining, 0.001))

    # -- sending ------------------------------------------------------------------------------------------

    def send(self, data: Buffer) -> int:
        size = len(data)
        if self._ahead or size > CHUNK:
            return self.send_many((data,))
        with self._lock:
            self._write(data)
            self._unsent = encrypted = self._outgoing.read()
            self._ahead = size
        sent = self._socket_send(encrypted)
        if sent < len(encrypted):
            self._unsent = memoryview(encrypted)[sent:]
            return self._send_encrypted(size)
        self._unsent = b""
        self._ahead = 0
        return size

    def send_many(self, buffers: Sequence[Buffer]) -> int:
        if not self._ahead:
            self._encrypt(buffers, CHUNK)
        return self._send_encrypted(sum(map(len, buffers)))

    def try_send(self, data: Buffer) -> int:
        """One record at a time: one that has not gone into the kernel as a whole does not count as taken."""
        rest = memoryview(data)
        while rest:
            if not self._ahead:
                self._encrypt((rest,), PLAIN)
            try:
                while self._unsent:
                    self._unsent = memoryview(self._unsent)[self._wire.try_send(self._unsent) :]
            except BlockingIOError:
                if len(rest) == len(data):
                    raise
                break
            rest = rest[self._taken(len(rest)) :]
        return len(data) - len(rest)

    def _encrypt(self, buffers: Sequence[Buffer], limit: int) -> None:
        """Up to `limit` bytes of them."""
        ahead = 0
        with self._lock:
            for buffer in buffers:
                room = limit - ahead
                part = buffer if len(buffer) <= room else memoryview(buffer)[:room]
                if part:
                    ahead += self._write(part)
            self._unsent, self._ahead = self._outgoing.read(), ahead

    def _send_encrypted(self, offered: int) -> int:
        while self._unsent:
            self._unsent = memoryview(self._unsent)[self._socket_send(self._unsent) :]
        return self._taken(offered)

    def _taken(self, offered: int) -> int:
        """How much of what is offered was encrypted, by this send or by the one before."""
        taken = min(self._ahead, offered)
        self._ahead -= taken
        return taken

    # -- receiving ----------------------------------------------------------------------------------------

    def receive(self, into: memoryview) -> int:
        return self._receive(into, 0)

    def try_receive(self, into: memoryview) -> int:
        return self._receive(into, socket.MSG_DONTWAIT)

    def receive_whole(self, into: memoryview) -> int:
        received, until = 0, time.monotonic() + READ_TIMEOUT
        while received < len(into) and (not received or time.monotonic() < until):
            try:
                n = self._receive(into[received:], 0)
            except BlockingIOError:
                if received:
                    break
                raise
            if not n:
                break
            received += n
        return received

    def _receive(self, into: memoryview, flags: int) -> int:
        if self._kept:
            n = self._decrypt(into)
            self._keep(n == len(into), 1)
            if n:
                return n
        until = 0.0
        while True:
            # A record is decrypted as a whole. Where all that comes of it has room, nothing stays in memory, of which
            # the descriptor would not tell. Where it may not, a byte stays in the kernel until memory is empty.
            room = len(into) - RECORD
            roomy = room >= RECORD
            if roomy:
                data = self._socket_recv(room if room < CHUNK else CHUNK, flags)
            else:
                data = self._socket_recv(RECORD, flags | socket.MSG_PEEK)
            if not data:
                return 0
            n = self._decrypt(into, data)
            if not roomy:
                self._keep(n == len(into), len(data))
            if n:
                return n
            now = time.monotonic()
            until = until or now + self._patience
            if now >= until:
                raise BlockingIOError("the rest of a record does not come")

    def _decrypt(self, into: memoryview, data: bytes = b"") -> int:
        """As much as there is, with `data` from the kernel; 0 where that ends within a record."""
        n, size, incoming = 0, len(into), self._incoming
        with self._lock:
            incoming.write(data)
            try:
                while n < size:
                    got = self._read(size - n, into[n:] if n else into)
                    if not got:
                        raise ConnectionResetError("the peer has ended TLS")
                    n += got
                    if not incoming.pending:
                        break
            except ssl.SSLWantReadError:
                pass
        return n

    def _keep(self, full: bool, decrypted: int) -> None:
        """Take from the kernel what has been decrypted, but for one byte where some of it may be in memory still."""
        with self._lock:
            keep = full and bool(self._tls.pending() or self._incoming.pending)
        self._kept = keep
        if decrypted > keep:
            self._socket_recv(decrypted - keep)


def _broken_off() -> ConnectionResetError:
    return ConnectionResetError("the peer closed the connection in the TLS handshake")


def _late() -> TimeoutError:
    return TimeoutError("no answer to the TLS handshake in time")


class TlsTransport:
    """`credentials` are looked at for each new connection; those that are there stay as they are."""

    scheme = "tls"

    def __init__(self, credentials: TlsCredentials) -> None:
        self._credentials = credentials

    def listen(self, host: str, port: int) -> Listener:
        """Raises `RpcGroupError` where the address cannot be listened on."""
        return TcpListener(listen_on(host, port), host, self.scheme, partial(self._stream, dialled=False))

    def connect(self, address: str, timeout: float) -> TlsStream:
        return self._stream(dial(self.scheme, address, timeout), dialled=True)

    def _stream(self, sock: socket.socket, *, dialled: bool) -> TlsStream:
        contexts = self._credentials.contexts()
        context = contexts.dialer if dialled else contexts.listener
        return TlsStream(sock, context, self._credentials.name, dialled=dialled)
