"""A network that misbehaves on demand: a transport around another one.

All faults are made at the dialling end of a connection, where both of its directions pass, and are named by
the address that was dialled. They hold for every connection to it, or come once for each new one (`Cut`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rpcgroup.transport.base import Buffer, Listener, Stream, Transport

__all__ = ["Cut", "FaultyTransport"]

HOLD_SECONDS = 30.0
"""A held connection breaks after that long: a test that forgets to release one must end."""


@dataclass(frozen=True)
class Cut:
    """Break a connection after that many bytes from its dialler, or to it, the handshake's included."""

    sent: int | None = None
    received: int | None = None


class FaultyTransport:
    """`cuts` gives the fate of each connection, in the order in which they are made; all later ones live.

    Thread-safe. `connections` and `severed` count what was made and what was broken by a cut or by `sever`.
    """

    def __init__(self, inner: Transport, cuts: Iterable[Cut] = ()) -> None:
        self.scheme = inner.scheme
        self.connections = 0
        self.severed = 0
        self._inner = inner
        self._cuts: Iterator[Cut] = iter(cuts)
        self._lock = threading.Lock()  # guards everything here, but _inner
        self._refused: set[str] = set()
        self._silent: set[str] = set()
        self._gates: dict[str, threading.Event] = {}
        self._streams: list[_FaultyStream] = []

    def listen(self, host: str, port: int) -> Listener:
        return self._inner.listen(host, port)

    def connect(self, address: str, timeout: float) -> Stream:
        with self._lock:
            if address in self._refused:
                raise ConnectionRefusedError(f"{address} refuses connections")
            if address in self._silent:
                raise TimeoutError(f"{address} does not answer")
            cut = next(self._cuts, Cut())
        stream = _FaultyStream(self, self._inner.connect(address, timeout), address, cut)
        with self._lock:
            self.connections += 1
            self._streams = [s for s in self._streams if not s.closed] + [stream]
        return stream

    def sever(self, address: str) -> None:
        """Break every connection to `address`, now; new ones are possible."""
        for stream in self._streams_to(address):
            stream.sever()

    def refuse(self, address: str) -> None:
        """Let no new connection to `address` come about, as where no process listens."""
        with self._lock:
            self._refused.add(address)

    def silence(self, address: str) -> None:
        """Swallow what goes to `address` and what comes from it, as where its host lost power.

        Its connections stay silent for ever; new ones are possible again after `restore`.
        """
        with self._lock:
            self._silent.add(address)
        for stream in self._streams_to(address):
            stream.silent_since = time.monotonic()

    def hold(self, address: str) -> None:
        """Keep back what is sent to `address` until `restore`, or for `HOLD_SECONDS`."""
        with self._lock:
            self._gates.setdefault(address, threading.Event())

    def restore(self, address: str) -> None:
        """End `refuse`, `silence` and `hold`."""
        with self._lock:
            self._refused.discard(address)
            self._silent.discard(address)
            gate = self._gates.pop(address, None)
        if gate is not None:
            gate.set()

    def _gate(self, address: str) -> threading.Event | None:
        with self._lock:
            return self._gates.get(address)

    def _streams_to(self, address: str) -> list[_FaultyStream]:
        with self._lock:
            return [stream for stream in self._streams if stream.address == address]

    def _count_severed(self) -> None:
        with self._lock:
            self.severed += 1


class _FaultyStream:
    """The dialler's end. As with any stream, one thread sends while another receives."""

    def __init__(self, network: FaultyTransport, inner: Stream, address: str, cut: Cut) -> None:
        self.address = address
        self.closed = False
        self.silent_since = 0.0
        self._severed = False
        self.fileno = inner.fileno
        self.handshake = inner.handshake
        self.set_handshake_timeout = inner.set_handshake_timeout
        self.wait_readable = inner.wait_readable
        self.shutdown = inner.shutdown
        self._network = network
        self._inner = inner
        self._to_send = cut.sent
        self._to_receive = cut.received

    def sever(self) -> None:
        if not self._severed:
            self._severed = True
            self._network._count_severed()
            self._inner.shutdown()

    def send(self, data: Buffer) -> int:
        gate = self._network._gate(self.address)
        if gate is not None and not gate.wait(HOLD_SECONDS):
            raise TimeoutError(f"held back for {HOLD_SECONDS:.0f} s")
        return self._send(data, wait=True)

    def try_send(self, data: Buffer) -> int:
        if self._network._gate(self.address) is not None:
            raise BlockingIOError("held back")
        return self._send(data, wait=False)

    def send_many(self, buffers: Sequence[Buffer]) -> int:
        # Sending some of the bytes is allowed: so a cut needs to count in one place only.
        return self.send(next(buffer for buffer in buffers if len(buffer)))

    def _send(self, data: Buffer, wait: bool) -> int:
        if self.silent_since:
            return len(data)
        send = self._inner.send if wait else self._inner.try_send
        if self._to_send is None:
            return send(data)
        taken = send(memoryview(data)[: self._to_send]) if self._to_send else 0
        self._to_send -= taken
        if not self._to_send:
            self.sever()
            if not taken:
                raise ConnectionResetError("cut")
        return taken

    def receive(self, into: memoryview) -> int:
        return self._received(self._inner.receive(self._room(into)))

    def receive_whole(self, into: memoryview) -> int:
        return self._received(self._inner.receive_whole(self._room(into)))

    def try_receive(self, into: memoryview) -> int:
        return self._received(self._inner.try_receive(self._room(into)))

    def _room(self, into: memoryview) -> memoryview:
        if self._to_receive is None:
            return into
        if not self._to_receive:
            self.sever()
            raise ConnectionResetError("cut")
        return into[: self._to_receive]

    def _received(self, n: int) -> int:
        if self.silent_since and n:
            raise BlockingIOError("nothing arrives")
        if self._to_receive is not None:
            self._to_receive -= n
        return n

    def silence(self) -> float:
        return time.monotonic() - self.silent_since if self.silent_since else self._inner.silence()

    def forget(self) -> None:
        self._inner.forget()

    def close(self) -> None:
        self.closed = True
        self._inner.close()
