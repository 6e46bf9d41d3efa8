"""What can be told without a device: that what one process packs, another one opens. tests/gpu has the rest."""

from __future__ import annotations

import gc
import inspect
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from rpcgroup.cuda import failed, torch_ipc
from rpcgroup.cuda.torch_ipc import TorchIpc


class FakeEvent:
    def __init__(self, interprocess: bool = False) -> None:
        assert interprocess
        self.recorded: object = None

    def record(self, stream: object) -> None:
        self.recorded = stream

    def ipc_handle(self) -> bytes:
        assert self.recorded == "the current stream"
        return b"e" * 64

    @staticmethod
    def from_ipc_handle(device: torch.device, handle: bytes) -> tuple[torch.device, bytes]:
        return device, handle


class FakeStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        if FakeStream.failure is not None:
            raise FakeStream.failure

    failure: Exception | None = None


class Sharing:
    """In the place of torch's reductions; the exporter's only device is the importer's second."""

    def __init__(self) -> None:
        self.uuids = [uuid4(), uuid4()]
        self.shared: torch.Tensor | None = None
        self.handle = b"h" * 65
        self.offset = 0
        """Of what is shared, in its allocation."""
        self.mapped: list[tuple[Any, ...]] = []
        self.storages: list[weakref.ref[torch.UntypedStorage]] = []
        self.counted_down: list[tuple[bytes, int]] = []

    def properties(self, index: int | None) -> SimpleNamespace:
        return SimpleNamespace(
            uuid=self.uuids[1 if index is None else index]
        )  # a CPU tensor's device has none

    def reduce(self, tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
        self.shared = tensor
        meta = (torch.Tensor, tensor.size(), tensor.stride(), 0, torch.storage.TypedStorage, torch.uint8)
        end = (False, b"/counters", 17, b"t" * 64, True)
        return None, (*meta, 0, self.handle, tensor.nbytes, self.offset, *end)

    def map(self, *args: Any) -> torch.UntypedStorage:
        self.mapped.append(args)
        assert self.shared is not None
        whole = torch.cat((torch.zeros(self.offset, dtype=torch.uint8), self.shared))
        storage = whole[: args[2]].clone().untyped_storage()
        self.storages.append(weakref.ref(storage))
        return storage


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Sharing:
    sharing = Sharing()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **how: empty(*size, dtype=how["dtype"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", sharing.properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the current stream")
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(FakeStream, "failure", None)
    monkeypatch.setattr(torch_ipc, "reduce_tensor", sharing.reduce)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", sharing.map)
    monkeypatch.setattr(
        torch.UntypedStorage,
        "_release_ipc_counter_cuda",
        lambda counters, counter: sharing.counted_down.append((counters, counter)),
    )
    return sharing


def test_what_is_exported_is_opened(sharing: Sharing) -> None:
    sharing.offset = 4096
    tensor = torch.arange(200, dtype=torch.uint8)[50:90]
    export = TorchIpc().export(tensor)
    ipc = TorchIpc()
    assert ipc.device_of(export.blob) == torch.device("cuda", 1)
    opened, event = ipc.open(export.blob)
    assert opened.tolist() == list(range(50, 90))
    assert event == (torch.device("cuda", 1), b"e" * 64)
    assert [(*args[:4], *args[6:]) for args in sharing.mapped] == [(1, sharing.handle, 4186, 0, b"", False)]


def test_the_whole_storage_is_shared_by_one_of_its_own_that_keeps_it(sharing: Sharing) -> None:
    tensor = torch.arange(50, dtype=torch.float32).view(torch.uint8)[8:16]
    address = tensor.untyped_storage().data_ptr()
    export = TorchIpc().export(tensor)
    shared = sharing.shared
    assert shared is not None and shared.nbytes == 200 and shared.dtype == torch.uint8
    assert shared.untyped_storage().data_ptr() == address
    assert shared.untyped_storage()._cdata != tensor.untyped_storage()._cdata
    del tensor
    gc.collect()
    assert shared.view(torch.float32).tolist() == list(range(50))  # still there
    export.end()
    assert sharing.counted_down == [(b"/counters", 17)]


def test_nothing_stays_shared_where_it_cannot_be_told_when_it_is_written(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shared has a reference more, and nobody to take it away."""

    def fail(event: FakeEvent, stream: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(FakeEvent, "record", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        TorchIpc().export(torch.zeros(100, dtype=torch.uint8))
    assert sharing.shared is None


def test_the_importer_leaves_the_count_to_the_exporter(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's count has no sign: taken down by both it is a large one, and the memory is never given back."""
    ipc = TorchIpc()
    ipc.open(TorchIpc().export(torch.zeros(100, dtype=torch.uint8)).blob)
    [(_, _, _, _, counters, counter, _, _)] = sharing.mapped
    monkeypatch.undo()
    before = set(Path("/dev/shm").iterdir())
    torch.UntypedStorage._release_ipc_counter_cuda(counters, counter)  # what torch does when it is dropped
    assert set(Path("/dev/shm").iterdir()) == before
    assert not Path("/dev/shm", counters.decode().lstrip("/")).exists()


def test_an_allocation_is_mapped_once(sharing: Sharing) -> None:
    """Mapping and unmapping take longer than the copies; the latter may wait for all that runs on the device."""
    exporter, ipc = TorchIpc(), TorchIpc()
    memory = torch.arange(250, dtype=torch.uint8)
    for start in (100, 0, 50):
        opened, _ = ipc.open(exporter.export(memory[start : start + 100]).blob)
        assert opened.tolist() == list(range(start, start + 100))
        del opened
        gc.collect()
    assert len(sharing.mapped) == 1
    opened, _ = ipc.open(exporter.export(memory[100:250]).blob)  # beyond what is known to be there
    assert opened.tolist() == list(range(100, 250)) and len(sharing.mapped) == 2


def test_what_has_not_been_used_for_long_is_unmapped(sharing: Sharing) -> None:
    exporter, ipc = TorchIpc(), TorchIpc()

    def open_memory(number: int) -> None:
        sharing.handle = b"%065d" % number
        ipc.open(exporter.export(torch.zeros(100, dtype=torch.uint8)).blob)

    for number in range(torch_ipc.MAPPED):
        open_memory(number)
    open_memory(0)  # has been used since
    open_memory(torch_ipc.MAPPED)
    assert [number for number, ref in enumerate(sharing.storages) if ref() is None] == [1]
    assert len(sharing.mapped) == torch_ipc.MAPPED + 1


def test_nothing_stays_mapped_of_a_peer_that_is_gone(sharing: Sharing) -> None:
    ipc = TorchIpc()
    opened, _ = ipc.open(TorchIpc().export(torch.arange(100, dtype=torch.uint8)).blob)
    ipc.close()
    assert opened.tolist() == list(range(100))  # which is being read
    del opened
    assert sharing.storages[0]() is None
    ipc.open(TorchIpc().export(torch.arange(100, dtype=torch.uint8)).blob)  # that was under way
    assert sharing.storages[1]() is None
    ipc.close()


def test_a_device_that_has_failed_is_not_asked_to_unmap(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch ends the process where that fails."""
    kept: list[object] = []
    monkeypatch.setattr(failed, "_kept", kept)
    ipc = TorchIpc()
    ipc.open(TorchIpc().export(torch.zeros(100, dtype=torch.uint8)).blob)
    monkeypatch.setattr(FakeStream, "failure", RuntimeError("CUDA error: device-side assert triggered"))
    ipc.close()
    gc.collect()
    assert kept and sharing.storages[0]() is not None


def test_a_device_that_is_not_here_is_refused(sharing: Sharing) -> None:
    blob = TorchIpc().export(torch.zeros(1, dtype=torch.uint8)).blob
    sharing.uuids = [uuid4()]
    ipc = TorchIpc.__new__(TorchIpc)
    ipc._indexes = {sharing.uuids[0].bytes: 0}
    with pytest.raises(ValueError, match="is none of this process"):
        ipc.device_of(blob)


def test_torch_has_what_is_used_of_its_reductions() -> None:
    """It is not documented: a torch that changes it is to be noticed here."""
    assert list(inspect.signature(reduce_tensor).parameters) == ["tensor"]
    source = inspect.getsource(rebuild_cuda_tensor)
    call = source[source.index("_new_shared_cuda(") :]
    arguments = [
        part.strip() for part in call[call.index("(") + 1 : call.index(")")].split(",") if part.strip()
    ]
    assert arguments == [
        *("storage_device", "storage_handle", "storage_size_bytes", "storage_offset_bytes"),
        *("ref_counter_handle", "ref_counter_offset", "event_handle", "event_sync_required"),
    ]
    with pytest.raises(RuntimeError, match="8 items"):
        torch.UntypedStorage._new_shared_cuda()
    assert callable(torch.UntypedStorage._release_ipc_counter_cuda)
