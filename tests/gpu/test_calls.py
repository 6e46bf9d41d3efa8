"""Calls, references, futures and gradients with tensors on real devices."""

from __future__ import annotations

import threading

import pytest
import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.errors import DevicePlacementError
from tests.gpu.scenarios import DEADLINE, SCENARIOS, Scenario, World, double, echo, in_threads, large, until

MiB = 1 << 20


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, world: World) -> None:
    scenario(world)


@pytest.mark.parametrize("size", [1, 4096, 64 << 10, 4 * MiB + 1, 256 * MiB])
def test_of_any_size(size: int, world: World) -> None:
    large(world, size)


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_every_device(index: int, world: World) -> None:
    sent = torch.arange(1000.0, device=f"cuda:{index}")
    back = world.agent.rpc_sync("there", double, (sent,))
    assert back.device == sent.device
    assert torch.equal(back, sent * 2)


def on_a_device() -> torch.Tensor:
    return torch.ones(3, device="cuda:0")


def test_an_unmapped_result_is_the_callers_error(world: World) -> None:
    """At `host` the map leads to the CPU, so nothing goes back from its device."""
    with pytest.raises(DevicePlacementError, match=r"Response device mapping is not available for cuda:0"):
        world.agent.rpc_sync("host", on_a_device)
    assert world.agent.rpc_sync("host", echo, (1,)) == 1


def has_a_gpu() -> bool:
    return torch.cuda.is_available()


def test_a_worker_without_a_gpu_takes_part(world: World) -> None:
    assert not world.agent.rpc_sync("plain", has_a_gpu)
    assert torch.equal(world.agent.rpc_sync("plain", double, (torch.ones(1000),)), torch.full((1000,), 2.0))
    assert world.agent.remote("plain", double, (torch.ones(2),)).to_here().tolist() == [2.0, 2.0]


def test_the_callers_memory_may_be_used_again_at_once(world: World) -> None:
    """What is sent is kept until it has been copied, whatever its user does meanwhile."""

    def call(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(20):
                value = float(number * 100 + turn)
                future = world.agent.rpc_async("there", double, (torch.full((MiB,), value, device="cuda:0"),))
                torch.full((MiB,), -1.0, device="cuda:0")  # of the memory that has just been dropped
                assert bool((future.wait() == 2 * value).all())

    in_threads(call, 4)


def test_small_calls_pass_while_a_large_tensor_travels(world: World) -> None:
    """Nothing is held up behind it: they are answered, in whichever order."""
    sent = torch.ones(64 * MiB, device="cuda:0")
    future = world.agent.rpc_async("there", double, (sent,))
    answered = threading.Event()

    def call() -> None:
        for number in range(100):
            assert world.agent.rpc_sync("there", echo, (number,)) == number
        answered.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert bool((future.wait() == 2).all())
    thread.join(DEADLINE)
    assert answered.is_set()


def test_nothing_stays_allocated(world: World) -> None:
    agent: Agent = world.agent
    sent = torch.ones(MiB, device="cuda:0")
    large(world, 4 * MiB)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        agent.rpc_sync("there", double, (sent,))
    torch.cuda.synchronize()
    until(lambda: torch.cuda.memory_allocated() <= before)  # what was sent is let go when its receiver has it
