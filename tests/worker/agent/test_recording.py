from __future__ import annotations

from typing import Any

import torch
from torch.autograd.profiler_legacy import profile
from torch.autograd.profiler_util import FunctionEvent

from rpcgroup.agent import recording
from rpcgroup.agent.recording import Events, Recording, Settings, recorded


def event(name: str, start: float, end: float, **fields: Any) -> Any:
    return FunctionEvent(0, name, 1, start, end, trace_name=name, **fields)


def test_remote_events_come_among_the_local_ones_by_their_start() -> None:
    mine = Recording(Settings())
    mine.node_id = 3
    mine.add("key", 5, Events(mine._start + 2_000_000, [event("x", 1, 4), event("y", 1, 2, node_id=7)]))
    events = mine.complete([event("early", 0, 9), event("late", 2005, 2006)])
    assert [(e.name, e.node_id, e.is_remote) for e in events] == [
        ("early", 3, False),
        ("key#remote_op: x", 5, True),
        ("key#remote_op: y", 7, True),
        ("late", 3, False),
    ]
    assert (events[1].time_range.start, events[1].time_range.end) == (2001, 2004)
    assert events[1].trace_name == "key#remote_op: x"


def test_what_runs_is_recorded_and_its_result_returned() -> None:
    result, (start, events) = recorded(Settings(record_shapes=True), lambda: torch.ones(3).relu())
    assert result.tolist() == [1, 1, 1] and start > 0
    (relu,) = [e for e in events if e.name == "aten::relu"]
    assert relu.input_shapes == [[3]]
    assert recording.current() is None and not recording.recordings


def test_within_a_profile_of_the_thread_nothing_more_is_recorded() -> None:
    with profile() as outer:
        result, (_, events) = recorded(Settings(), lambda: torch.ones(3))
    assert events == [] and len(result) == 3
    assert any(e.name == "aten::ones" for e in outer.function_events)


def test_a_profile_ends_with_what_raises_in_it() -> None:
    def fail() -> None:
        raise KeyError

    try:
        recorded(Settings(), fail)
    except KeyError:
        pass
    with profile():
        pass  # would raise where the other is still on


def test_profiles_are_seen_while_it_is_installed() -> None:
    with profile():
        assert recording.current() is None
    recording.install()
    recording.install()
    try:
        with profile(profile_memory=True):
            current = recording.current()
            assert current is not None and current.settings == Settings(profile_memory=True)
        assert recording.current() is None
        recording.uninstall()
        with profile():
            assert recording.current() is not None
    finally:
        recording.uninstall()
    with profile():
        assert recording.current() is None
