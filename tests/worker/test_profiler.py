from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.autograd.profiler_legacy import profile

from rpcgroup.agent import serving
from rpcgroup.profiler import server_process_global_profile
from rpcgroup.testing.cluster import LocalCluster


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster("ab") as cluster:
        yield cluster


def add() -> Any:
    return torch.add(torch.ones(1), 1)


def sub(x: Any) -> Any:
    return torch.sub(x, x)


def names(events: Any) -> set[str]:
    return {event.name for event in events}


def test_what_runs_for_others_is_profiled(cluster: LocalCluster) -> None:
    agent = cluster.agent("a")
    with server_process_global_profile() as profiled:
        agent.rpc_sync("b", add)
        agent.rpc_async("b", sub, (torch.ones(1),)).wait()
        agent.remote("b", add).to_here()
        torch.mul(torch.ones(1), 2)  # not for others
    first, second, third = profiled.process_global_function_events[:3]
    assert "aten::add" in names(first) and "aten::ones" in names(first)
    assert names(second) == {"aten::sub"}
    assert "aten::add" in names(third)
    assert names(profiled.function_events) == names(first) | names(second) | names(third)
    assert first[0].time_range.start < second[0].time_range.start < third[0].time_range.start
    assert "aten::sub" in str(profiled.key_averages())
    assert pickle.loads(pickle.dumps(profiled.process_global_function_events[0]))[0].name == first[0].name


def test_an_outer_profile_has_what_an_inner_one_has(cluster: LocalCluster) -> None:
    agent = cluster.agent("a")
    with server_process_global_profile() as outer:
        agent.rpc_sync("b", add)
        with server_process_global_profile(record_shapes=True) as inner:
            agent.rpc_sync("b", sub, (torch.ones(7),))
    assert [names(events) for events in inner.process_global_function_events] == [{"aten::sub"}]
    assert inner.function_events[0].input_shapes[0] == [7]
    assert [names(events) for events in outer.process_global_function_events][1] == {"aten::sub"}
    assert not serving.servings


def test_a_request_within_which_it_ends_is_not_in_it(cluster: LocalCluster) -> None:
    agent = cluster.agent("a")
    profiled = agent.remote("b", server_process_global_profile)
    profiled.rpc_sync().__enter__()
    agent.rpc_sync("b", sub, (torch.ones(1),))
    profiled.rpc_sync().__exit__(None, None, None)
    events = profiled.to_here().process_global_function_events
    assert [names(request) for request in events] == [{"aten::sub"}]


def test_a_function_that_raises_does_so(cluster: LocalCluster) -> None:
    with server_process_global_profile() as profiled, pytest.raises(TypeError):
        cluster.agent("a").rpc_sync("b", sub)
    assert profiled.process_global_function_events == []


def test_a_caller_may_profile_too(cluster: LocalCluster) -> None:
    with server_process_global_profile() as served, profile() as own:
        cluster.agent("a").rpc_sync("b", sub, (torch.ones(1),))
    assert "aten::sub" in names(served.function_events)
    assert "rpc_sync#sub(a -> b)" in names(own.function_events)


def test_one_that_is_not_enabled_does_nothing(cluster: LocalCluster) -> None:
    with server_process_global_profile(enabled=False):
        assert not serving.servings
    profiled = server_process_global_profile()
    with profiled, pytest.raises(RuntimeError, match="not reentrant"):
        profiled.__enter__()
