from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rpcgroup.cuda.runtime import Runtime, current_runtime
from rpcgroup.testing.device_tensor import DeviceTensor
from rpcgroup.testing.recording_device import RecordingDevice, recording_device
from tests.worker.testing.reachability import Step, is_ordered

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def device() -> RecordingDevice:
    """Not checked at its end: most of these tests want violations."""
    return RecordingDevice()


def after(device: RecordingDevice, tensor: torch.Tensor, stream: object) -> None:
    """As the product does it: the current stream's event, and the allocator told."""
    device.wait(stream, device.record(device.current_stream(tensor.device)))
    device.retain(tensor, stream)


# -- what is right ----------------------------------------------------------------------------------------


def test_it_is_a_runtime(device: RecordingDevice) -> None:
    runtime: Runtime = device
    assert runtime.device_count() == 2
    assert runtime.tensor_type is DeviceTensor
    assert type(runtime.empty(3, ONE)) is runtime.tensor_type


def test_tensors_are_used_on_another_stream_behind_an_event(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0, 2.0])
    side = device.new_stream(ZERO)
    after(device, tensor, side)
    with device.use([side]):
        result = tensor * 2
        done = device.record(side)
    del tensor
    device.wait(device.current_stream(ZERO), done)
    device.retain(result, device.current_stream(ZERO))
    assert device.to_host(result + 1).tolist() == [3.0, 5.0]
    device.check()


def test_bytes_go_by_pinned_memory_to_another_device(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0, 2.0, 3.0])
    pinned = device.pinned(tensor.nbytes)
    device.copy(pinned, tensor.view(torch.uint8))
    device.synchronize(device.record(device.current_stream(ZERO)))
    sent = bytes(device.host_memory(pinned))
    landing = device.pinned(len(sent))
    device.host_memory(landing)[:] = sent
    target = device.empty(len(sent), ONE)
    device.copy(target, landing)
    assert target.device == ONE
    assert device.to_host(target.view(torch.float32)).tolist() == [1.0, 2.0, 3.0]
    device.check()


def test_what_is_empty_is_full_of_garbage(device: RecordingDevice) -> None:
    assert set(device.to_host(device.empty(16, ZERO)).tolist()) == {0xCD}


def test_memory_that_is_dropped_on_its_own_stream_is_free(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    view = tensor[:]
    del tensor
    view += 1
    del view
    device.check()


def test_pinned_memory_may_be_dropped_while_it_is_copied(device: RecordingDevice) -> None:
    """Torch's allocator keeps it until the copies are done."""
    tensor = device.tensor([1], dtype=torch.uint8)
    device.copy(device.pinned(1), tensor)
    device.check()


def test_streams_come_again_and_are_their_devices_and_priorities_own() -> None:
    device = RecordingDevice(pool=3)
    streams = [device.new_stream(ZERO) for _ in range(4)]
    assert streams[3] is streams[0]
    assert len(set(streams)) == 3
    high, other = device.new_stream(ZERO, priority=-1), device.new_stream(ONE)
    assert {high, other}.isdisjoint(streams)
    assert (high.priority, streams[0].priority, other.device) == (-1, 0, ONE)


def test_current_streams_are_each_threads_own(device: RecordingDevice) -> None:
    default, side, far = device.current_stream(ZERO), device.new_stream(ZERO), device.new_stream(ONE)
    seen: list[object] = []
    with device.use([side, far]):
        thread = threading.Thread(target=lambda: seen.append(device.current_stream(ZERO)))
        thread.start()
        thread.join()
        assert device.current_stream(ZERO) is side
        assert device.current_stream(ONE) is far
        with device.use([default]):
            assert device.current_stream(ZERO) is default
            assert device.current_stream(ONE) is far
        assert device.current_stream(ZERO) is side
    assert seen == [default]
    assert device.current_stream(ZERO) is default


def test_a_device_that_is_not_there(device: RecordingDevice) -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal: cuda:2, of 2"):
        device.empty(1, torch.device("cuda", 2))


def test_threads_hand_tensors_on_in_a_ring(device: RecordingDevice) -> None:
    ring: list[queue.Queue[Any]] = [queue.Queue() for _ in range(4)]

    def pass_on(number: int) -> None:
        for _ in range(20):
            tensor, event = ring[number].get(timeout=30)
            stream = device.new_stream(ZERO)
            device.wait(stream, event)
            device.retain(tensor, stream)
            with device.use([stream]):
                tensor = tensor + 1
                ring[(number + 1) % 4].put((tensor, device.record(stream)))

    threads = [threading.Thread(target=pass_on, args=(number,)) for number in range(4)]
    for number in range(4):
        ring[number].put((device.tensor([0.0]), device.record(device.current_stream(ZERO))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for some in ring:
        tensor, event = some.get(timeout=30)
        device.synchronize(event)
        assert tensor.tolist() == [20.0]
    device.check()


# -- what is wrong ----------------------------------------------------------------------------------------


def only(violations: list[str]) -> str:
    (line,) = violations
    return line


def test_a_use_without_a_wait_says_what_and_where(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0, 2.0])
    with device.use([device.new_stream(ZERO)]):
        device.retain(tensor, device.current_stream(ZERO))
        tensor + 1
    line = only(device.violations)
    assert "tensor 1 (float32[2] of cuda:0): the read by aten.add.Tensor" in line
    assert "on cuda:0 stream 0 is not behind the write by tensor()" in line
    assert "on cuda:0 default stream" in line
    assert line.count("testing/test_recording_device.py:") >= 2
    with pytest.raises(AssertionError, match="1 order violations:\ntensor 1"):
        device.check()


def test_a_wait_for_an_event_that_was_recorded_too_early(device: RecordingDevice) -> None:
    side = device.new_stream(ZERO)
    tensor = device.tensor([1.0])
    after(device, tensor, side)
    tensor.add_(1)
    with device.use([side]):
        tensor + 1
    assert "is not behind the write by aten.add_.Tensor" in only(device.violations)


def test_a_write_in_place_over_another_streams_read(device: RecordingDevice) -> None:
    side = device.new_stream(ZERO)
    tensor = device.tensor([1.0, 2.0])
    after(device, tensor, side)
    with device.use([side]):
        tensor + 1
    tensor[:1].zero_()
    assert "the write by aten.zero_.default" in only(device.violations)


def test_views_share_their_memory_and_parts_of_it_are_apart(device: RecordingDevice) -> None:
    side = device.new_stream(ZERO)
    tensor = device.tensor([1.0, 2.0, 3.0, 4.0])
    after(device, tensor, side)
    with device.use([side]):
        tensor[:2].add_(1)
    tensor.view(torch.uint8)[8:].add_(1)
    assert device.violations == []
    tensor.view(2, 2)[0, 1].add_(1)
    assert len(device.violations) == 1


def test_memory_that_is_dropped_while_another_stream_uses_it(device: RecordingDevice) -> None:
    side = device.new_stream(ZERO)
    tensor = device.tensor([1.0])
    device.wait(side, device.record(device.current_stream(ZERO)))
    with device.use([side]):
        tensor + 1
    view = tensor.detach()
    del tensor
    gc.collect()
    assert device.violations == []
    del view
    assert "is freed in a drop" in only(device.violations)
    assert "the read by aten.add.Tensor" in only(device.violations)


def test_memory_of_another_stream_is_not_written_before_its_allocation(device: RecordingDevice) -> None:
    tensor = device.empty(4, ZERO)
    with device.use([device.new_stream(ZERO)]):
        device.retain(tensor, device.current_stream(ZERO))
        tensor.zero_()
    assert "is not behind the write by the allocation in empty()" in only(device.violations)


def test_the_host_uses_pinned_memory_that_is_still_copied(device: RecordingDevice) -> None:
    pinned = device.pinned(8)
    device.copy(pinned[:4], device.tensor([1.0]).view(torch.uint8))
    device.host_memory(pinned[4:])
    assert device.violations == []
    device.host_memory(pinned[3:])
    assert "the host uses pinned memory 1 of 8 B in host_memory()" in only(device.violations)


def test_the_host_refills_pinned_memory_that_is_still_copied(device: RecordingDevice) -> None:
    pinned, target = device.pinned(4), device.empty(4, ZERO)
    device.copy(target, pinned)
    event = device.record(device.current_stream(ZERO))
    device.synchronize(event)
    device.host_memory(pinned)
    device.copy(target, pinned)
    device.host_memory(pinned)
    assert "has not synchronized with the read by aten.copy_" in only(device.violations)


def test_an_event_that_is_done_has_been_seen_by_the_host(device: RecordingDevice) -> None:
    pinned = device.pinned(4)
    device.copy(pinned, device.empty(4, ZERO))
    assert device.is_done(device.record(device.current_stream(ZERO)))
    device.host_memory(pinned)
    device.check()


def test_pinned_memory_is_forgotten_with_its_last_view(device: RecordingDevice) -> None:
    part = device.pinned(8)[4:]
    assert device.memory_of(part) is not None
    bytes_ = device.host_memory(part)
    del part
    assert len(device._pinned) == 1
    del bytes_
    gc.collect()
    assert not device._pinned


def test_memory_of_the_host_that_is_not_pinned(device: RecordingDevice) -> None:
    plain = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(AssertionError, match="not pinned"):
        device.host_memory(plain)
    with pytest.raises(AssertionError, match="not pinned"):
        device.copy(plain, device.empty(4, ZERO))
    with pytest.raises(AssertionError, match="not on a device"):
        device.retain(plain, device.current_stream(ZERO))


def test_events_that_nobody_has_used_are_counted(device: RecordingDevice) -> None:
    stream = device.current_stream(ZERO)
    for use in (device.synchronize, device.is_done, lambda event: device.wait(stream, event)):
        event = device.record(stream)
        use(event)
    kept = device.record(stream)
    device.record(stream)
    gc.collect()
    assert device.events_never_used == 1
    del event, kept
    gc.collect()
    assert device.events_never_used == 2


# -- streams that are held --------------------------------------------------------------------------------


def test_what_is_behind_a_held_stream_is_not_done(device: RecordingDevice) -> None:
    stream, side, other = device.current_stream(ZERO), device.new_stream(ZERO), device.new_stream(ZERO)
    before = device.record(stream)
    hold = device.hold(stream)
    event = device.record(stream)
    device.wait(side, event)
    behind = device.record(side)
    assert device.is_done(before)
    assert not device.is_done(event)
    assert not device.is_done(behind)
    assert device.is_done(device.record(other))
    hold.release()
    assert device.is_done(event)
    assert device.is_done(behind)
    assert device.is_done(device.record(side))


def test_the_host_waits_for_a_held_stream(device: RecordingDevice) -> None:
    tensor = device.tensor([1.0])
    hold = device.hold(0)
    waiting, got = threading.Event(), []

    def wait() -> None:
        waiting.set()
        got.append(tensor.item())

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(10)
    thread.join(0.05)
    assert thread.is_alive()
    hold.release()
    thread.join(10)
    assert got == [1.0]
    device.check()


def test_all_streams_of_a_device_are_held(device: RecordingDevice) -> None:
    hold = device.hold(ONE)
    assert not device.is_done(device.record(device.new_stream(ONE, -1)))
    assert device.is_done(device.record(device.current_stream(ZERO)))
    hold.release()
    assert device.is_done(device.record(device.current_stream(ONE)))


def test_an_event_is_not_done_and_the_host_has_not_seen_it(device: RecordingDevice) -> None:
    pinned = device.pinned(4)
    hold = device.hold(ZERO)
    device.copy(pinned, device.empty(4, ZERO))
    device.is_done(device.record(device.current_stream(ZERO)))
    device.host_memory(pinned)
    hold.release()
    assert len(device.violations) == 1


def test_a_stream_that_nobody_releases(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpcgroup.testing.recording_device._HELD_AT_MOST", 0.01)
    hold = device.hold(ZERO)
    with pytest.raises(RuntimeError, match="nobody has released"):
        device.synchronize(device.record(device.current_stream(ZERO)))
    hold.release()


# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["empty", "copy", "synchronize", "record"])
def test_the_next_call_fails_and_the_one_after_does_not(device: RecordingDevice, what: str) -> None:
    stream, target, pinned = device.current_stream(ZERO), device.empty(4, ZERO), device.pinned(4)
    event = device.record(stream)
    calls = {
        "empty": lambda: device.empty(4, ZERO),
        "copy": lambda: device.copy(target, pinned),
        "synchronize": lambda: device.synchronize(event),
        "record": lambda: device.record(stream),
    }
    device.fail_next(what, torch.OutOfMemoryError("CUDA out of memory"))
    for other in calls.keys() - {what}:
        calls[other]()
    with pytest.raises(torch.OutOfMemoryError):
        calls[what]()
    calls[what]()


def test_what_cannot_fail(device: RecordingDevice) -> None:
    with pytest.raises(ValueError, match="'wait'"):
        device.fail_next("wait", RuntimeError())


# -- the runtime of the process ---------------------------------------------------------------------------


def test_it_is_the_processs_runtime_for_a_while() -> None:
    before = current_runtime()
    with recording_device(device_count=1) as device:
        assert current_runtime() is device
    assert current_runtime() is before


def test_it_is_checked_at_its_end() -> None:
    before = current_runtime()
    with pytest.raises(AssertionError, match="1 order violations"), recording_device() as device:
        pinned = device.pinned(4)
        device.copy(pinned, device.empty(4, ZERO))
        device.host_memory(pinned)
    assert current_runtime() is before


def test_what_the_body_raises_comes_first() -> None:
    with pytest.raises(ValueError, match="first"), recording_device() as device:
        pinned = device.pinned(4)
        device.copy(pinned, device.empty(4, ZERO))
        device.host_memory(pinned)
        raise ValueError("first")


# -- random programs --------------------------------------------------------------------------------------


class Written:
    """A random right program, run on a device and written down as steps; seam number `left_out` is not done."""

    def __init__(self, choices: list[tuple[str, int, int, int]], left_out: int | None = None) -> None:
        self.device = RecordingDevice(pool=3)
        self.steps: list[Step] = []
        self.seams = 0
        self._left_out = left_out
        self._streams = [self.device.new_stream(ZERO) for _ in range(3)]
        self._tensors: dict[int, torch.Tensor] = {}
        self._events: dict[int, list[tuple[int, object]]] = {}
        self._numbers: Iterator[int] = iter(range(1000))
        for choice in choices:
            self._step(*choice)
        for name in list(self._tensors):
            self._drop(name)

    def _step(self, kind: str, lane: int, first: int, second: int) -> None:
        names = sorted(self._tensors)
        if not names or kind == "new":
            self._new(lane)
        elif kind == "drop":
            self._drop(names[first % len(names)])
        else:
            chosen = {names[first % len(names)], names[second % len(names)]}
            self._op(kind, lane, sorted(chosen))

    def _new(self, lane: int) -> None:
        name = next(self._numbers)
        with self.device.use([self._streams[lane]]):
            self._tensors[name] = self.device.tensor([1.0, 2.0])
        self._events[name] = []
        self.steps += [("allocate", name, lane), ("use", lane, [(name, 0, 8, True)])]
        self._hand_over([name], lane)

    def _op(self, kind: str, lane: int, names: list[int]) -> None:
        stream = self._streams[lane]
        for name in names:
            for number, event in self._events[name]:
                if self._seam():
                    self.device.wait(stream, event)
                    self.steps.append(("wait", number, lane))
            if self._seam():
                self.device.retain(self._tensors[name], stream)
                self.steps.append(("retain", name, lane))
        tensors = [self._tensors[name] for name in names]
        with self.device.use([stream]):
            if kind == "add":
                result = next(self._numbers)
                self._tensors[result] = tensors[0] + tensors[-1]
                self._events[result] = []
                uses = [(name, 0, 8, False) for name in names]
                self.steps += [("allocate", result, lane), ("use", lane, [*uses, (result, 0, 8, True)])]
                names = [*names, result]
            else:
                tensors[0][:1].add_(tensors[-1][1:])
                self.steps.append(("use", lane, [(names[0], 0, 4, True), (names[-1], 4, 8, False)]))
        self._hand_over(names, lane)

    def _hand_over(self, names: list[int], lane: int) -> None:
        number = next(self._numbers)
        event = self.device.record(self._streams[lane])
        self.steps.append(("record", number, lane))
        for name in names:
            self._events[name].append((number, event))

    def _drop(self, name: int) -> None:
        del self._tensors[name], self._events[name]
        self.steps.append(("free", name))

    def _seam(self) -> bool:
        self.seams += 1
        return self.seams - 1 != self._left_out


CHOICES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add_", "new", "drop"]),
        st.integers(0, 2),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(CHOICES, st.data())
def test_a_right_program_is_clean_and_with_one_seam_left_out_as_brute_force_says(
    choices: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    right = Written(choices)
    right.device.check()
    if right.seams:
        worse = Written(choices, left_out=data.draw(st.integers(0, right.seams - 1)))
        assert (worse.device.violations == []) == is_ordered(worse.steps)


def test_what_sleeps_holds_up_what_is_behind_it() -> None:
    with recording_device() as device:
        place = torch.device("cuda", 0)
        sleeper, behind, other = (device.new_stream(place) for _ in range(3))
        device.sleep(sleeper, 0.5)
        device.sleep(sleeper, 0.5)
        asleep = device.record(sleeper)
        device.wait(behind, asleep)
        assert not device.is_done(device.record(behind))
        assert device.is_done(device.record(other))
        device.drain_device(place)
        assert device.is_done(asleep)
        assert device.is_done(device.record(behind))


def test_the_current_device_is_each_threads() -> None:
    with recording_device() as device:
        device.current_device = 1
        assert device.exact("cuda") == torch.device("cuda", 1)
        of_another: list[torch.device] = []
        thread = threading.Thread(target=lambda: of_another.append(device.exact("cuda")))
        thread.start()
        thread.join(10)
        assert of_another == [torch.device("cuda", 0)]
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            device.current_device = 2


@pytest.mark.parametrize("non_blocking", [False, True])
def test_a_blocking_copy_from_the_host_is_seen_to_its_end(non_blocking: bool) -> None:
    device, place = RecordingDevice(), torch.device("cuda", 0)
    on_device = device.empty(2, place).copy_(torch.ones(2, dtype=torch.uint8), non_blocking=non_blocking)
    with device.use([device.new_stream(place)]):
        assert on_device.tolist() == [1, 1]
    assert bool(device.violations) is non_blocking
