"""Transfers on a real device: through pinned memory within this process, and by shared memory from another one."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rpcgroup.cuda.completions import Completions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.inbound import Arrivals
from rpcgroup.cuda.outbound import prepare
from rpcgroup.cuda.sharing import Exports, Probes
from rpcgroup.cuda.staging import SMALL, PinnedPool
from rpcgroup.cuda.torch_cuda import TorchCuda
from rpcgroup.cuda.torch_ipc import TorchIpc
from rpcgroup.wire.payloads import CHUNK, IPC
from rpcgroup.wire.tensors import tensor_memory
from tests.gpu import importer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use is here")

DEVICE = torch.device("cuda", 0)


def random_bytes(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, device=DEVICE)


def test_tensors_come_out_of_pinned_memory_as_they_went_in() -> None:
    runtime = TorchCuda()
    pool = PinnedPool(runtime)
    jobs: list[Callable[[], None]] = []
    completions = Completions(runtime, lambda seconds, job: jobs.append(job), jobs.append)
    arrivals = Arrivals(runtime, pool, completions)
    tensors = [random_bytes(size) for size in (1, SMALL, 3 * CHUNK + 5, 0, 20 * CHUNK)]
    payloads, departure = prepare(runtime, pool, 1, [(tensor, 0) for tensor in tensors])
    ready: list[Events] = []
    failed: list[Any] = []
    arrivals.expect(1, payloads, ready.append, failed.append)

    def deliver(transfer_id: int, index: int, place: int, data: memoryview) -> None:
        received = arrivals.allocate(len(data))
        memoryview(received).cast("B")[:] = data
        arrivals.on_chunk(transfer_id, index, place, received)

    departure.run(deliver, lambda transfer_id, exc: failed.append(exc))
    assert not failed
    ready[0].wait()
    for sent, got in zip(tensors, ready[0].tensors, strict=True):
        assert torch.equal(sent, got)
    torch.cuda.synchronize()
    completions.poll()
    assert pool.in_use == 0


def test_a_departure_waits_for_the_kernel_that_writes() -> None:
    runtime = TorchCuda()
    tensor = torch.zeros(SMALL, dtype=torch.uint8, device=DEVICE)
    with torch.cuda.stream(torch.cuda.Stream(DEVICE)):
        torch.cuda._sleep(200_000_000)
        tensor.fill_(7)
        _, departure = prepare(runtime, PinnedPool(runtime), 1, [(tensor, 0)])
    seen: list[bytes] = []
    departure.run(
        lambda transfer_id, index, place, data: seen.append(bytes(data)), lambda _, exc: pytest.fail(str(exc))
    )
    assert seen == [b"\7" * SMALL]


@pytest.fixture
def other_process() -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=importer.serve, args=(its,), daemon=True)
    process.start()
    yield mine
    mine.send(None)
    process.join(60)
    process.close()
    mine.close()
    its.close()


def ask(connection: Any, kind: str, argument: object) -> Any:
    connection.send((kind, argument))
    assert connection.poll(60)
    answer = connection.recv()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def test_another_process_reads_shared_memory_and_everything_is_given_back(other_process: Any) -> None:
    runtime, ipc = TorchCuda(), TorchIpc()
    jobs: list[Callable[[], None]] = []
    probes = Probes(runtime, ipc, lambda blob: ask(other_process, "probe", blob), jobs.append)
    probes.works(DEVICE)
    jobs.pop()()
    if not probes.works(DEVICE):
        pytest.skip("memory cannot be shared between two processes here")
    exports = Exports(ipc, probes.works)
    storage = random_bytes(4 * CHUNK)
    before = torch.cuda.memory_allocated()
    for transfer in range(20):  # the same memory again and again, as a parameter's
        tensors = [storage[CHUNK : 3 * CHUNK], random_bytes(SMALL + 1)]
        payloads, _ = prepare(runtime, PinnedPool(runtime), transfer, [(t, 0) for t in tensors], exports)
        assert [payload.path for payload in payloads] == [IPC, IPC]
        read = ask(other_process, "read", payloads)
        assert read == [bytes(tensor_memory(tensor.cpu())) for tensor in tensors]
        exports.release(transfer)
        del tensors
    gc.collect()
    assert not exports.transfers and torch.cuda.memory_allocated() == before


def test_what_a_peer_never_opens_is_given_back() -> None:
    exports = Exports(TorchIpc(), lambda device: True)
    before = torch.cuda.memory_allocated()
    tensor = random_bytes(2 * CHUNK)
    assert exports.export(1, tensor) is not None
    del tensor
    assert torch.cuda.memory_allocated() > before
    exports.close()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
