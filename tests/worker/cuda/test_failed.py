from __future__ import annotations

import os
import weakref

import pytest
import torch

from rpcgroup.cuda import failed
from rpcgroup.cuda.failed import keep, keep_where_failed
from rpcgroup.cuda.staging import PinnedPool
from rpcgroup.cuda.torch_ipc import TorchIpc
from rpcgroup.testing.recording_device import RecordingDevice


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    kept: list[object] = []
    monkeypatch.setattr(failed, "_kept", kept)
    return kept


def test_what_is_dropped_is_kept_where_one_of_the_devices_gives_no_event(kept: list[object]) -> None:
    device = RecordingDevice()
    streams = [device.current_stream(torch.device("cuda", index)) for index in (0, 1)]
    keep_where_failed(device, streams, "of a device that works")
    assert not kept
    device.fail_next("record", RuntimeError("CUDA error: device-side assert triggered"))
    keep_where_failed(device, streams, "of one that has failed")
    assert kept == ["of one that has failed"]


def test_it_may_have_been_found_out_already(kept: list[object]) -> None:
    keep("tensors")
    assert kept == ["tensors"]


def test_a_forked_child_frees_nothing_that_needs_a_device() -> None:
    used = [PinnedPool(RecordingDevice()), TorchIpc()]
    refs = list(map(weakref.ref, used))
    child = os.fork()
    used.clear()
    if child == 0:
        os._exit(0 if all(ref() is not None for ref in refs) else 1)
    assert all(ref() is None for ref in refs)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
