from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rpcgroup.cuda.events import Events
from rpcgroup.testing.recording_device import RecordingDevice, recording_device

PATIENCE = 20.0
ONE, TWO = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


def on_a_stream_of_its_own(device: RecordingDevice, where: torch.device = ONE) -> tuple[torch.Tensor, Events]:
    """A tensor, written on a stream that is no longer current, and the events behind that."""
    with device.use([device.new_stream(where)]):
        tensor = device.tensor([1.0, 2.0], where)
        return tensor, Events.record(device, [tensor])


def test_one_event_for_each_device(device: RecordingDevice) -> None:
    tensors = [device.tensor([1.0], 0), device.tensor([2.0], 0), device.tensor([3.0], 1)]
    assert Events.record(device, tensors).devices == [ONE, TWO]
    assert Events.record(device, tensors[:1], [TWO]).devices == [ONE, TWO]
    assert Events.record(device, ()).devices == []


def test_use_without_the_events_is_a_violation() -> None:
    """That the checker notices it is what the other tests rest on."""
    device = RecordingDevice()
    tensor, _ = on_a_stream_of_its_own(device)
    tensor + 1
    assert device.violations


def test_the_current_streams_wait(device: RecordingDevice) -> None:
    held = device.hold(0)
    for where in (ONE, TWO):
        tensor, events = on_a_stream_of_its_own(device, where)
        events.wait()  # without blocking
        tensor += 1
    held.release()


def test_each_thread_has_current_streams_of_its_own_to_order(device: RecordingDevice) -> None:
    tensor, events = on_a_stream_of_its_own(device)
    events.wait()
    with device.use([device.new_stream(ONE)]):
        events.wait()
        tensor + 1


def test_the_memory_is_kept_for_who_has_waited(device: RecordingDevice) -> None:
    tensor, events = on_a_stream_of_its_own(device)
    events.wait()
    result = tensor + 1
    del tensor, events  # its allocator is told of this stream, so nobody gets the memory before it is done
    for _ in range(20):
        on_a_stream_of_its_own(device)
    assert device.to_host(result).tolist() == [2.0, 3.0]


def test_the_host_waits(device: RecordingDevice) -> None:
    held = device.hold(0)
    _, events = on_a_stream_of_its_own(device)
    waiting, done = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        events.synchronize()
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(PATIENCE)
    assert not done.is_set()
    held.release()
    thread.join(PATIENCE)
    assert done.is_set()


def test_taking_over_blocks_unless_asked_not_to(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized = count_synchronizations(device, monkeypatch)
    tensor, events = on_a_stream_of_its_own(device)
    events.take_over(non_blocking=True)
    assert not synchronized
    events.take_over(non_blocking=False)
    assert len(synchronized) == 1
    tensor + 1


def test_nothing_in_a_callback_blocks_on_a_device(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized = count_synchronizations(device, monkeypatch)
    tensor, events = on_a_stream_of_its_own(device)
    other, others = on_a_stream_of_its_own(device, TWO)
    with events.callback([TWO], 0):
        with events.callback([], 0):
            pass
        others.take_over(non_blocking=False)
        tensor + 1
        other + 1
    assert not synchronized
    events.take_over(non_blocking=False)
    assert len(synchronized) == 1


def test_a_callback_that_fails_leaves_the_thread_as_it_was(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized = count_synchronizations(device, monkeypatch)
    _, events = on_a_stream_of_its_own(device)
    before = device.current_stream(ONE)
    with pytest.raises(KeyError), events.callback([ONE], 0):
        raise KeyError
    assert device.current_stream(ONE) is before
    events.take_over(non_blocking=False)
    assert synchronized


def test_fresh_streams_behind_the_events(device: RecordingDevice) -> None:
    tensor, events = on_a_stream_of_its_own(device)
    before = device.current_stream(ONE), device.current_stream(TWO)
    with events.after([TWO], priority=-1):
        streams = device.current_stream(ONE), device.current_stream(TWO)
        assert [stream.priority for stream in streams] == [-1, -1]
        tensor += 1
    assert (device.current_stream(ONE), device.current_stream(TWO)) == before
    with events.after():
        assert device.current_stream(ONE).priority == 0
        assert device.current_stream(TWO) is before[1]


def test_renewed_events_are_behind_what_was_done_since(device: RecordingDevice) -> None:
    tensor, events = on_a_stream_of_its_own(device)
    with events.after():
        tensor += 1
        renewed = events.renewed()
    assert renewed.tensors == [tensor]
    renewed.wait()
    tensor += 1


def test_they_precede_the_work_of_other_devices(device: RecordingDevice) -> None:
    held = device.hold(ONE)
    _, events = on_a_stream_of_its_own(device, ONE)
    with device.use([device.new_stream(TWO)]):
        events.precede([TWO, TWO])
        assert not device.is_done(device.record(device.current_stream(TWO)))
    assert not events.are_over()
    held.release()
    assert events.are_over()


def test_they_are_over_where_the_device_has_failed(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(event: object) -> bool:
        raise RuntimeError("CUDA error: device-side assert triggered")

    _, events = on_a_stream_of_its_own(device)
    monkeypatch.setattr(device, "is_done", fail)
    assert events.are_over()


def test_alone_they_keep_no_tensors(device: RecordingDevice) -> None:
    tensor, events = on_a_stream_of_its_own(device)
    alone = events.alone()
    assert events.tensors == [tensor] and not alone.tensors and alone.devices == [ONE]
    alone.synchronize()


def test_what_a_device_fails_with_is_raised_as_it_is(device: RecordingDevice) -> None:
    tensor, events = on_a_stream_of_its_own(device)
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    device.fail_next("synchronize", error)
    with pytest.raises(RuntimeError) as raised:
        events.take_over(non_blocking=False)
    assert raised.value is error
    device.fail_next("record", error)
    with pytest.raises(RuntimeError) as raised:
        Events.record(device, [tensor])
    assert raised.value is error


def count_synchronizations(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    synchronize = device.synchronize

    def counted(event: Any) -> None:
        calls.append(event)
        synchronize(event)

    monkeypatch.setattr(device, "synchronize", counted)
    return calls
