"""The ways to call another process that are measured side by side, behind one small interface.

Each peer is two processes: one serves, one calls. A peer that cannot do a workload lacks its method.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch

from benchmarks.meeting import Meeting

__all__ = ["PEERS", "Peer", "RawSocket", "RpcGroup", "TorchDefault", "TorchTcp", "TorchTcpManyThreads"]

SERVER = "server"
CLIENT = "client"


class Peer(Protocol):
    """Made anew in each of its two processes; `open` is called once in each, with the process's name."""

    polls_when_idle: ClassVar[bool]
    """It takes the processor from the others while it is not its turn, so it is stopped then."""

    def __init__(self, meeting: Meeting) -> None: ...

    def open(self, name: str) -> None: ...

    def close(self) -> None: ...

    def noop(self) -> None:
        """One call without arguments, answered with nothing."""
        ...

    def echo(self, tensor: torch.Tensor) -> None:
        """One call that brings the tensor back."""
        ...

    def burst(self, calls: int) -> None:
        """This many no-op calls in flight at once; returns when all are answered."""
        ...


def noop() -> None:
    return None


def echo(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def bounce(module: str, here: str, there: str, depth: int) -> None:
    """Call back and forth: at depth n, n calls wait in two processes."""
    if depth:
        rpc = importlib.import_module(module)
        rpc.rpc_sync(there, bounce, args=(module, there, here, depth - 1))


class _TorchShaped:
    """What `torch.distributed.rpc` and `rpcgroup` have in common: all but how one joins."""

    module: str
    autograd: str
    polls_when_idle: ClassVar[bool] = False

    def __init__(self, meeting: Meeting) -> None:
        self.meeting = meeting
        self.rpc: Any = importlib.import_module(self.module)

    def noop(self) -> None:
        self.rpc.rpc_sync(SERVER, noop)

    def echo(self, tensor: torch.Tensor) -> None:
        self.rpc.rpc_sync(SERVER, echo, args=(tensor,))

    def burst(self, calls: int) -> None:
        for future in [self.rpc.rpc_async(SERVER, noop) for _ in range(calls)]:
            future.wait()

    def nest(self, depth: int) -> None:
        bounce(self.module, CLIENT, SERVER, depth)

    @contextmanager
    def chain(self, hops: int) -> Iterator[Callable[[], None]]:
        """A graph that goes there and back until it has crossed so many times; gives its backward pass."""
        autograd: Any = importlib.import_module(self.autograd)
        with autograd.context() as context_id:
            value = torch.ones(16, requires_grad=True)
            for _ in range(hops // 2):
                value = self.rpc.rpc_sync(SERVER, double, args=(value,))
            loss = value.sum()
            yield lambda: autograd.backward(context_id, [loss], True)

    def fetch(self) -> None:
        """Create a value over there and bring it here."""
        self.rpc.remote(SERVER, noop).to_here()


class RpcGroup(_TorchShaped):
    """This project, all of its semantics on: etcd, handshake, timeouts, acknowledgements."""

    module = "rpcgroup"
    autograd = "rpcgroup.autograd"

    def open(self, name: str) -> None:
        os.environ.update(self.meeting.environment)
        self.rpc.init_rpc(name, init_method=self.meeting.rendezvous)

    def close(self) -> None:
        self.rpc.shutdown(graceful=False)


class TorchTcp(_TorchShaped):
    """Torch RPC as two pods get it: TensorPipe over TCP."""

    module = "torch.distributed.rpc"
    autograd = "torch.distributed.autograd"
    options: Mapping[str, Any] = MappingProxyType({"_transports": ["uv"]})

    def open(self, name: str) -> None:
        options = self.rpc.TensorPipeRpcBackendOptions(
            init_method=f"tcp://127.0.0.1:{self.meeting.port(type(self).__name__)}", **self.options
        )
        rank = [SERVER, CLIENT].index(name)
        self.rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)

    def close(self) -> None:
        self.rpc.shutdown(graceful=False)


class TorchTcpManyThreads(TorchTcp):
    """Nested calls of depth n need n/2 threads a side: with its default of 16 torch would never end."""

    options = MappingProxyType({"_transports": ["uv"], "num_worker_threads": 256})


class TorchDefault(TorchTcp):
    """Torch RPC with the transports it picks on one host: shared memory, polled by a thread of its own."""

    options = MappingProxyType({})
    polls_when_idle: ClassVar[bool] = True


class RawSocket:
    """Blocking sockets and nothing else: no pickling, no dispatch, a thread a connection."""

    HEADER = 8
    polls_when_idle: ClassVar[bool] = False

    def __init__(self, meeting: Meeting) -> None:
        self._address = ("127.0.0.1", meeting.port("RawSocket"))
        self._listener: socket.socket | None = None
        self._local = threading.local()

    def open(self, name: str) -> None:
        if name == SERVER:
            self._listener = socket.create_server(self._address)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener:
            self._listener.close()

    def noop(self) -> None:
        self._exchange([b""])

    def echo(self, tensor: torch.Tensor) -> None:
        self._exchange(
            [tensor.numpy().tobytes() if tensor.nbytes < 1 << 16 else tensor.numpy().data.cast("B")]
        )

    def burst(self, calls: int) -> None:
        self._exchange([b""] * calls)

    def _exchange(self, bodies: Sequence[bytes | memoryview]) -> None:
        connection = self._connection()
        for body in bodies:
            connection.sendall(len(body).to_bytes(self.HEADER, "little"))
            if len(body):
                connection.sendall(body)
        for body in bodies:
            self._receive(connection, self._buffer(self.HEADER + len(body)))

    def _connection(self) -> socket.socket:
        """One a thread, like its counterpart on the other side."""
        if not hasattr(self._local, "connection"):
            self._local.connection = socket.create_connection(self._address)
            self._local.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection: socket.socket = self._local.connection
        return connection

    def _buffer(self, size: int) -> memoryview:
        """Reused: touching new memory would cost more than the copy."""
        if len(getattr(self._local, "buffer", b"")) < size:
            self._local.buffer = memoryview(bytearray(size))
        buffer: memoryview = self._local.buffer
        return buffer[:size]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        header = memoryview(bytearray(self.HEADER))
        while self._receive(connection, header):
            size = int.from_bytes(header, "little")
            message = self._buffer(self.HEADER + size)
            message[: self.HEADER] = header
            self._receive(connection, message[self.HEADER :])
            connection.sendall(message)

    @staticmethod
    def _receive(connection: socket.socket, into: memoryview) -> bool:
        """Fill the buffer; False where the other side has closed."""
        got = 0
        while got < len(into):
            part = connection.recv_into(into[got:])
            if not part:
                return False
            got += part
        return True


PEERS: dict[str, type[Peer]] = {
    "rpcgroup": RpcGroup,
    "torch tcp": TorchTcp,
    "torch tcp, 256 threads": TorchTcpManyThreads,
    "torch default": TorchDefault,
    "socket": RawSocket,
}
