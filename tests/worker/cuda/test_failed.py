from __future__ import annotations

import pytest
import torch

from rpcgroup.cuda import failed
from rpcgroup.cuda.failed import keep, keep_where_failed
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
