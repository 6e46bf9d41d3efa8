"""What can be told without a device: that what one process packs, another one opens. tests/gpu has the rest."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch

from rpcgroup.cuda import torch_ipc
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


class Sharing:
    """In the place of torch's reductions; the exporter's only device is the importer's second."""

    def __init__(self) -> None:
        self.uuids = [uuid4(), uuid4()]
        self.shared: torch.Tensor | None = None
        self.rebuilt: tuple[Any, ...] = ()
        self.counted_down: list[tuple[bytes, int]] = []

    def properties(self, index: int | None) -> SimpleNamespace:
        return SimpleNamespace(
            uuid=self.uuids[1 if index is None else index]
        )  # a CPU tensor's device has none

    def reduce(self, tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
        self.shared = tensor
        handle, counters = b"h" * 65, b"/" + self.counters.name.encode()
        meta = (torch.Tensor, tensor.size(), tensor.stride(), 0, torch.storage.TypedStorage, torch.uint8)
        return None, (*meta, 0, handle, tensor.nbytes, 4096, False, counters, 17, b"t" * 64, True)

    def rebuild(self, *args: Any) -> torch.Tensor:
        self.rebuilt = args
        assert self.shared is not None
        return self.shared

    counters: Path


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sharing]:
    sharing = Sharing()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", sharing.properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the current stream")
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch_ipc, "reduce_tensor", sharing.reduce)
    monkeypatch.setattr(torch_ipc, "rebuild_cuda_tensor", sharing.rebuild)
    monkeypatch.setattr(
        torch.UntypedStorage,
        "_release_ipc_counter_cuda",
        lambda counters, counter: sharing.counted_down.append((counters, counter)),
        raising=False,
    )
    with tempfile.NamedTemporaryFile() as counters:
        sharing.counters = Path(counters.name)
        monkeypatch.setattr(torch_ipc, "_SHARED_MEMORY", sharing.counters.parent)
        sharing.counters = sharing.counters.relative_to(sharing.counters.parent)
        yield sharing


def test_what_is_exported_is_opened(sharing: Sharing) -> None:
    ipc = TorchIpc()
    tensor = torch.arange(200, dtype=torch.uint8)[50:90]
    export = ipc.export(tensor)
    assert ipc.device_of(export.blob) == torch.device("cuda", 1)
    opened, event = ipc.open(export.blob)
    assert opened.tolist() == list(range(50, 90)) and opened.data_ptr() == tensor.data_ptr()
    assert event == (torch.device("cuda", 1), b"e" * 64)
    assert sharing.rebuilt == (
        *(torch.Tensor, (200,), (1,), 0, torch.storage.TypedStorage, torch.uint8),
        *(1, b"h" * 65, 200, 4096, False, b"/" + sharing.counters.name.encode(), 17, b"", False),
    )


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
    assert sharing.counted_down == [(b"/" + sharing.counters.name.encode(), 17)]


def test_a_device_that_is_not_here_is_refused(sharing: Sharing) -> None:
    blob = TorchIpc().export(torch.zeros(1, dtype=torch.uint8)).blob
    sharing.uuids = [uuid4()]
    ipc = TorchIpc.__new__(TorchIpc)
    ipc._indexes = {sharing.uuids[0].bytes: 0}
    with pytest.raises(ValueError, match="is none of this process"):
        ipc.device_of(blob)


def test_another_dev_shm_is_refused(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The memory could be read there, and would never be given back."""
    ipc = TorchIpc()
    blob = ipc.export(torch.zeros(1, dtype=torch.uint8)).blob
    monkeypatch.setattr(torch_ipc, "_SHARED_MEMORY", tmp_path)
    with pytest.raises(RuntimeError, match="/dev/shm"):
        ipc.open(blob)


def test_torch_has_what_is_used_of_its_reductions() -> None:
    """They are public and not documented: a torch that changes them is to be noticed here."""
    import inspect

    from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

    assert list(inspect.signature(rebuild_cuda_tensor).parameters) == [
        *("tensor_cls", "tensor_size", "tensor_stride", "tensor_offset", "storage_cls", "dtype"),
        *("storage_device", "storage_handle", "storage_size_bytes", "storage_offset_bytes", "requires_grad"),
        *("ref_counter_handle", "ref_counter_offset", "event_handle", "event_sync_required"),
    ]
    assert list(inspect.signature(reduce_tensor).parameters) == ["tensor"]
    assert callable(torch.UntypedStorage._release_ipc_counter_cuda)
