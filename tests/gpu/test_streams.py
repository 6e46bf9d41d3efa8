"""When futures complete and what waits for what, with kernels that take long: events tell the order, not clocks."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.gpu.paths import shares_memory
from tests.gpu.scenarios import World, double, echo, until

KERNEL_SECONDS = 2.0
_after_kernel: list[torch.cuda.Event] = []


@functools.cache
def cycles_per_second() -> float:
    """Of `torch.cuda._sleep`, which spins; the clock of an idle GPU rises first."""
    cycles = 100_000_000
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
    return cycles / (start.elapsed_time(end) / 1000)


def enqueue_kernel() -> None:
    torch.cuda._sleep(int(KERNEL_SECONDS * cycles_per_second()))


# At `there`.


def calibrated() -> bool:
    with torch.cuda.device(0):
        return cycles_per_second() > 0


def slowly(tensor: torch.Tensor) -> torch.Tensor:
    """A result that is enqueued behind a long kernel."""
    with torch.cuda.device(tensor.device):
        enqueue_kernel()
        result = tensor * 2
        event = torch.cuda.Event()
        event.record()
    _after_kernel[:] = [event]
    return result


def kernel_runs() -> bool:
    return not _after_kernel[0].query()


@pytest.fixture
def sent(world: World) -> torch.Tensor:
    assert world.agent.rpc_sync("there", calibrated)
    tensor = torch.ones(1 << 20, device="cuda:0")
    # A kernel is loaded when it is first used, and the driver may wait with that for what runs.
    assert bool((world.agent.rpc_sync("there", double, (tensor,)) * 2 + 1 == 5).all())
    return tensor


def test_a_future_completes_while_the_kernel_runs_and_wait_blocks(world: World, sent: torch.Tensor) -> None:
    if not shares_memory(world.agent, "there", world.device):
        pytest.skip(
            "this pair goes by the host's memory: a future completes when its data has come through it"
        )
    future = world.agent.rpc_async("there", slowly, (sent,))
    until(future.done)
    assert world.agent.rpc_sync("there", kernel_runs)
    result = future.wait(non_blocking=True)
    doubled = result * 2
    here = torch.cuda.Event()
    here.record()
    assert world.agent.rpc_sync("there", kernel_runs)
    assert not here.query()
    future.wait()
    assert not world.agent.rpc_sync("there", kernel_runs)
    assert bool((doubled == 4).all())


def test_by_the_host_a_future_completes_with_its_data(world: World, sent: torch.Tensor) -> None:
    if shares_memory(world.agent, "there", world.device):
        pytest.skip("this pair shares its devices' memory")
    future = world.agent.rpc_async("there", slowly, (sent,))
    assert world.agent.rpc_sync("there", echo, (1,)) == 1  # nothing is held up behind the kernel
    until(future.done)
    assert not world.agent.rpc_sync("there", kernel_runs)
    assert bool((future.wait(non_blocking=True) == 2).all())


def test_a_kernel_of_the_callers_holds_up_nobody(world: World) -> None:
    """The argument is behind it, and so the result; the call is made and small ones pass meanwhile."""
    cycles_per_second()
    shares_memory(world.agent, "there", world.device)  # whose memory is mapped then
    with torch.cuda.stream(torch.cuda.Stream()):
        argument = torch.ones(1 << 20, device="cuda:0")  # loads the kernel that fills it again
        enqueue_kernel()
        argument.fill_(3)
        written = torch.cuda.Event()
        written.record()
        future = world.agent.rpc_async("there", echo, (argument,))
        assert world.agent.rpc_sync("there", echo, (1,)) == 1
        assert not written.query()
        assert bool((future.wait() == 3).all())


def test_a_callback_is_behind_the_kernel(world: World, sent: torch.Tensor) -> None:
    chained = world.agent.rpc_async("there", slowly, (sent,)).then(lambda done: done.wait() + 1)
    assert bool((chained.wait(non_blocking=True) == 3).all())


def test_a_reference_is_fetched_behind_the_kernel(world: World, sent: torch.Tensor) -> None:
    value = world.agent.remote("there", slowly, (sent,))
    assert bool((value.to_here() == 2).all())
