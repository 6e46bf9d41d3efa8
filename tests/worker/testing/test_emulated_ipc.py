"""Both sides are in this process here, with devices of their own."""

from __future__ import annotations

import pytest
import torch

from rpcgroup.testing.device_tensor import DeviceTensor
from rpcgroup.testing.emulated_ipc import EmulatedIpc
from rpcgroup.testing.recording_device import RecordingDevice

ONE = torch.device("cuda", 1)


def exported(here: RecordingDevice) -> DeviceTensor:
    return here.tensor(torch.arange(100, dtype=torch.uint8), ONE)


def test_what_is_exported_is_opened() -> None:
    here, there = RecordingDevice(), RecordingDevice()
    tensor = exported(here)
    export = EmulatedIpc(here).export(tensor)
    ipc = EmulatedIpc(there)
    assert ipc.device_of(export.blob) == ONE
    opened, event = ipc.open(export.blob)
    assert event.recorded is not None
    there.wait(there.current_stream(ONE), event.recorded)
    assert opened.device == ONE
    assert opened.tolist() == list(range(100))
    export.end()
    tensor += 1
    del opened, tensor, export
    here.check()
    there.check()


def test_the_importer_has_to_wait_for_the_exporter() -> None:
    here, there = RecordingDevice(), RecordingDevice()
    stream = here.current_stream(ONE)
    tensor = exported(here)
    here.sleep(stream, 60)
    export = EmulatedIpc(here).export(tensor)
    opened, event = EmulatedIpc(there).open(export.blob)
    assert event.recorded is not None
    assert not there.is_done(event.recorded)
    there.empty(100, ONE).copy_(opened)
    assert "another process" in there.violations[0]
    export.end()


def test_the_exporter_leaves_it_alone_until_it_has_been_read() -> None:
    here = RecordingDevice()
    tensor = exported(here)
    export = EmulatedIpc(here).export(tensor)
    tensor += 1
    assert "another process" in here.violations[0]
    export.end()


def test_what_has_ended_cannot_be_opened() -> None:
    here = RecordingDevice()
    export = EmulatedIpc(here).export(exported(here))
    export.end()
    with pytest.raises(OSError):
        EmulatedIpc(RecordingDevice()).open(export.blob)


def test_a_device_that_is_not_here_is_refused() -> None:
    here = RecordingDevice()
    export = EmulatedIpc(here).export(exported(here))
    with pytest.raises(ValueError, match="the device 1 is none"):
        EmulatedIpc(RecordingDevice(1)).open(export.blob)
    export.end()
