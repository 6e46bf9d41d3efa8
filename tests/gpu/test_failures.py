"""What a device fails with reaches the caller as itself, and the worker goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.gpu.scenarios import World, double, echo

MiB = 1 << 20
LARGE = 256 * MiB
CUDA_FAILED = r"CUDA error|device-side assert"


def allocate(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8, device="cuda:0")


def limit(fraction: float) -> None:
    gc.collect()  # what it frees later would be there to be allocated again
    torch.cuda.empty_cache()
    for index in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(fraction, index)


def little() -> float:
    """Less than `LARGE` of the device's memory."""
    return LARGE / 2 / torch.cuda.get_device_properties(0).total_memory


def still_good(world: World) -> bool:
    back = world.agent.rpc_sync("there", double, (torch.ones(1000, device="cuda:0"),))
    return bool((back == 2).all())


def test_a_function_runs_out_of_memory(world: World) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        world.agent.rpc_sync("there", allocate, (1 << 50,))
    assert still_good(world)


@contextmanager
def little_memory_there(world: World) -> Iterator[None]:
    world.agent.rpc_sync("there", limit, (little(),))
    try:
        yield
    finally:
        world.agent.rpc_sync("there", limit, (1.0,))


def test_an_argument_finds_no_memory(world: World) -> None:
    sent = allocate(LARGE)
    with little_memory_there(world), pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        world.agent.rpc_sync("there", echo, (sent,))
    assert still_good(world)
    assert world.agent.rpc_sync("there", echo, (sent,)).nbytes == LARGE


def test_a_result_finds_no_memory_at_the_caller(world: World) -> None:
    device = world.target.index
    limit(little())
    try:
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            world.agent.rpc_sync("there", allocate_on, (device, LARGE))
    finally:
        limit(1.0)
    assert still_good(world)
    assert world.agent.rpc_sync("there", allocate_on, (device, LARGE)).nbytes == LARGE


def allocate_on(index: int, size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=f"cuda:{index}")


def out_of_bounds(tensor: torch.Tensor) -> torch.Tensor:
    """A device-side assertion: every later use of this process's CUDA fails, for good."""
    result = tensor[torch.tensor([1 << 30], device=tensor.device)]
    torch.cuda.synchronize()
    return result


def test_a_cuda_error_reaches_the_caller_and_the_worker_serves_on(world: World) -> None:
    """CUDA's own rule is that the process can use the device no more; calls without it go on."""
    sent = torch.ones(4, device="cuda:0")
    with pytest.raises(RuntimeError, match=CUDA_FAILED):
        world.agent.rpc_sync("hurt", out_of_bounds, (sent,))
    with pytest.raises(RuntimeError, match=CUDA_FAILED):
        world.agent.rpc_sync("hurt", double, (sent,))
    assert world.agent.rpc_sync("hurt", echo, ("still here",)) == "still here"
    assert bool((world.agent.rpc_sync("hurt", double, (torch.ones(3),)) == 2).all())
    assert still_good(world)
