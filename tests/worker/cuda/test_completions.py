from __future__ import annotations

import weakref

import pytest
import torch

from rpcgroup.cuda.completions import LONGEST_POLL, SHORTEST_POLL, Completions
from rpcgroup.testing.recording_device import RecordingDevice
from tests.worker.cuda.wires import Timers

DEVICE = torch.device("cuda", 0)


class Thing:
    pass


def test_an_action_is_done_behind_all_of_its_events_and_once() -> None:
    device, timers, done = RecordingDevice(), Timers(), list[str]()
    completions = Completions(device, timers, timers.submit)
    first, second = device.new_stream(DEVICE), device.new_stream(DEVICE)
    holds = device.hold(first), device.hold(second)
    completions.behind((first, second), lambda: done.append("done"))
    for hold in holds:
        timers.fire()
        assert not done
        hold.release()
    timers.fire()
    assert done == ["done"] and not timers and not completions.waiting


def test_what_is_done_does_not_wait_for_what_is_not() -> None:
    device, timers, done = RecordingDevice(), Timers(), list[str]()
    completions = Completions(device, timers, timers.submit)
    held, free = device.new_stream(DEVICE), device.new_stream(DEVICE)
    hold = device.hold(held)
    completions.behind((held,), lambda: done.append("held"))
    completions.behind((free,), lambda: done.append("free"))
    timers.fire()
    assert done == ["free"] and completions.waiting == 1
    hold.release()
    timers.fire()
    assert done == ["free", "held"] and not completions.waiting


def test_whoever_looks_in_between_carries_nothing_out() -> None:
    """Its thread must not block; what was kept it lets go of."""
    device, timers, done, thing = RecordingDevice(), Timers(), list[str](), Thing()
    completions = Completions(device, timers, timers.submit)
    stream = device.new_stream(DEVICE)
    completions.behind((stream,), lambda: done.append("done"))
    completions.keep(thing, stream)
    kept = weakref.ref(thing)
    del thing
    assert completions.poll() and kept() is None and not done
    assert not completions.poll()
    timers.fire()
    assert done == ["done"]


def test_a_thing_is_kept_until_then() -> None:
    device, timers, thing = RecordingDevice(), Timers(), Thing()
    completions = Completions(device, timers, timers.submit)
    stream = device.new_stream(DEVICE)
    hold = device.hold(stream)
    completions.keep(thing, stream)
    kept = weakref.ref(thing)
    del thing
    timers.fire()
    assert kept() is not None
    hold.release()
    timers.fire()
    assert kept() is None


def test_nobody_looks_while_nothing_waits_and_seldom_while_nothing_happens() -> None:
    device, timers = RecordingDevice(), Timers()
    completions = Completions(device, timers, timers.submit)
    stream = device.new_stream(DEVICE)
    hold = device.hold(stream)
    assert not timers
    completions.keep(None, stream)
    completions.keep(None, stream)
    pauses = []
    for _ in range(10):
        assert len(timers) == 1  # one for all of them
        pauses.append(timers[0][0])
        timers.fire()
    assert pauses[0] == SHORTEST_POLL and pauses == sorted(pauses) and pauses[-1] == LONGEST_POLL
    hold.release()
    timers.fire()
    assert not timers
    completions.keep(None, stream)
    assert timers[0][0] == SHORTEST_POLL


def test_a_device_that_has_failed_is_waited_for_no_more() -> None:
    class Failed(RecordingDevice):
        def is_done(self, event: object) -> bool:
            raise RuntimeError("CUDA error: unspecified launch failure")

    device, timers, done = Failed(), Timers(), list[str]()
    Completions(device, timers, timers.submit).behind(
        (device.new_stream(DEVICE),), lambda: done.append("done")
    )
    timers.fire()
    assert done == ["done"]


def test_what_no_event_can_be_recorded_for_is_kept_all_the_same() -> None:
    device, timers, thing = RecordingDevice(), Timers(), Thing()
    completions = Completions(device, timers, timers.submit)
    stream = device.new_stream(DEVICE)
    hold = device.hold(stream)
    device.fail_next("record", RuntimeError("CUDA error: out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        completions.keep(thing, stream)
    kept = weakref.ref(thing)
    del thing
    timers.fire()
    assert kept() is not None
    hold.release()
    timers.fire()
    assert kept() is None


def test_on_a_device_that_has_failed_nothing_is_kept() -> None:
    device, timers, thing = RecordingDevice(), Timers(), Thing()
    completions = Completions(device, timers, timers.submit)
    stream = device.new_stream(DEVICE)
    for _ in range(2):
        device.fail_next("record", RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(RuntimeError):
        completions.keep(thing, stream)
    kept = weakref.ref(thing)
    del thing
    timers.fire()
    assert kept() is None and not timers
