"""The other process of test_transfers.py: opens what it is sent and sends back what it has read.

Over a pipe comes ("probe", blob) or ("read", payloads); back go the bytes, or the text of the error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection

from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.inbound import Arrivals
from rpcgroup.cuda.sharing import answer_probe
from rpcgroup.cuda.staging import PinnedPool
from rpcgroup.cuda.torch_cuda import TorchCuda
from rpcgroup.cuda.torch_ipc import TorchIpc
from rpcgroup.wire.payloads import Payload
from rpcgroup.wire.tensors import tensor_memory

SECONDS = 60.0


def serve(connection: Connection) -> None:
    runtime, ipc = TorchCuda(), TorchIpc()
    while (request := connection.recv()) is not None:
        kind, argument = request
        try:
            if kind == "probe":
                connection.send(answer_probe(runtime, ipc, argument))
            else:
                connection.send(read(runtime, ipc, argument))
        except Exception as exc:
            connection.send(f"{type(exc).__name__}: {exc}")


def read(runtime: TorchCuda, ipc: TorchIpc, payloads: list[Payload]) -> list[bytes]:
    released = threading.Event()
    ready: list[Events] = []
    failed: list[Exception] = []
    jobs: deque[Callable[[], None]] = deque()
    completions = Completions(runtime, lambda seconds, job: jobs.append(job), jobs.append)
    arrivals = Arrivals(
        runtime, PinnedPool(runtime), completions, bytearray, ipc, lambda transfer_id: released.set()
    )
    arrivals.expect(1, payloads, ready.append, failed.append)
    deadline = time.monotonic() + SECONDS
    while not released.is_set() and time.monotonic() < deadline:
        jobs.popleft()()
    if failed:
        raise failed[0]
    ready[0].wait()
    return [bytes(tensor_memory(tensor.cpu())) for tensor in ready[0].tensors]
