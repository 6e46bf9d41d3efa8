from __future__ import annotations

import threading
import time

import torch

from rpcgroup.testing.recorded_streams import Hold, RecordedEvent, StreamPool

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)


def test_streams_are_given_out_in_turn_by_device_and_priority() -> None:
    pool = StreamPool([ZERO, ONE], 2)
    given = [pool.next(ZERO, 0) for _ in range(3)]
    assert given[2] is given[0] is not given[1]
    assert pool.next(ZERO, -3).priority == -1
    assert pool.next(ONE, 5).device == ONE
    assert len(pool.streams) == len({*pool.streams}) == 2 * (1 + 2 * 2)
    assert {repr(stream) for stream in given} == {"cuda:0 stream 0", "cuda:0 stream 1"}
    assert set(pool.defaults.values()).isdisjoint(given)


def test_an_event_is_done_when_all_its_holds_are_released() -> None:
    released = threading.Condition()
    holds = [Hold(released), Hold(released)]
    event = RecordedEvent({}, frozenset(holds))
    holds[0].release()
    assert not event.is_done()
    holds[1].release()
    assert event.is_done()


def test_an_event_is_done_when_its_time_has_come() -> None:
    event = RecordedEvent({}, frozenset(), time=time.monotonic() + 60)
    assert not event.is_done()
    assert event.seconds_left() > 0
    assert RecordedEvent({}, frozenset(), time=time.monotonic()).is_done()
