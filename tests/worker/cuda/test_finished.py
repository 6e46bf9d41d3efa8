from __future__ import annotations

import torch

from rpcgroup.cuda.finished import Finished
from rpcgroup.testing.recording_device import RecordingDevice

ZERO = torch.device("cuda", 0)


def test_later_streams_are_behind_all_that_has_finished() -> None:
    device = RecordingDevice()
    finished = Finished(device)
    with device.use([device.new_stream(ZERO)]):
        finished.wait([ZERO])  # nothing has
        one, two = device.tensor([1.0]), device.tensor([1.0])
        finished.add([ZERO])
    for tensor in (one, two):  # at the same time: neither waits for the other
        with device.use([device.new_stream(ZERO)]) as _:
            finished.wait([ZERO])
            tensor += 1
            device.retain(tensor, device.current_stream(ZERO))
    assert not device.violations


def test_of_two_that_ran_at_the_same_time_neither_is_lost() -> None:
    device = RecordingDevice()
    finished = Finished(device)
    streams = [device.new_stream(ZERO) for _ in range(3)]
    tensors = []
    for stream in streams[:2]:
        with device.use([stream]):
            tensors.append(device.tensor([1.0]))
    for stream in streams[:2]:
        with device.use([stream]):
            finished.add([ZERO])
    with device.use([streams[2]]):
        finished.wait([ZERO])
        for tensor in tensors:
            tensor += 1
            device.retain(tensor, streams[2])
    device.check()


def test_other_devices_are_left_alone() -> None:
    device = RecordingDevice()
    finished = Finished(device)
    hold = device.hold("cuda:1")
    finished.add([ZERO, torch.device("cuda", 1)])
    fresh = [device.new_stream(place) for place in (ZERO, torch.device("cuda", 1))]
    with device.use(fresh):
        finished.wait([ZERO])
    assert device.is_done(device.record(fresh[0]))
    hold.release()
