"""torch's part of a call's future is made when torch asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch.futures import collect_all, wait_all

import rpcgroup.agent.call_future as call_future
from rpcgroup.agent.agent import Agent
from rpcgroup.testing.cluster import LocalCluster

_gate = threading.Event()
DEADLINE = 20.0


def echo(value: int) -> int:
    return value


def wait_for_gate() -> str:
    assert _gate.wait(DEADLINE)
    return "through"


def fail() -> None:
    raise KeyError("why")


@pytest.fixture
def agent() -> Iterator[Agent]:
    _gate.clear()
    with LocalCluster("ab") as cluster:
        yield cluster.agent("a")
        _gate.set()


def test_torch_has_the_name_that_is_replaced() -> None:
    assert call_future._collect_all is not None, (
        "every future is complete from the start: slower, and correct"
    )


def test_a_future_has_no_torch_part_until_it_is_materialized(agent: Agent) -> None:
    future = agent.rpc_async("b", echo, (1,))
    assert [f.wait() for f in collect_all([future]).wait()] == [1]
    assert not future._has_torch_part
    future.materialize()
    assert torch.futures.Future.wait(future) == 1


def test_pending_futures_are_collected_when_their_answers_come(agent: Agent) -> None:
    futures = [agent.rpc_async("b", wait_for_gate) for _ in range(3)]
    collected = collect_all(futures)
    assert not collected.done()
    _gate.set()
    assert [f.wait() for f in collected.wait()] == ["through"] * 3


def test_an_error_comes_out_of_wait_all(agent: Agent) -> None:
    with pytest.raises(KeyError, match="why"):
        wait_all([agent.rpc_async("b", echo, (1,)), agent.rpc_async("b", fail)])


def test_many_threads_collect_one_future(agent: Agent) -> None:
    future = agent.rpc_async("b", wait_for_gate)
    values: list[str] = []
    threads = [
        threading.Thread(target=lambda: values.append(collect_all([future]).wait()[0].wait()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    _gate.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert values == ["through"] * 8


def test_futures_of_others_are_collected_as_ever(agent: Agent) -> None:
    import torch

    plain: torch.futures.Future[int] = torch.futures.Future()
    plain.set_result(7)
    chained = agent.rpc_async("b", echo, (1,)).then(lambda done: done.wait() + 1)
    assert wait_all([plain, chained]) == [7, 2]
