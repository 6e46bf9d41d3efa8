"""Groups with devices, without a GPU: what tests/gpu does on CUDA's, on recorded ones, with their order checked."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
import torch

from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import recording_device
from rpcgroup.testing.recording_ipc import RecordingIpc
from tests.gpu.paths import shares_memory
from tests.gpu.scenarios import DEADLINE, SCENARIOS, Scenario, World, double, echo, large, until

MAPS = {
    "here": {
        "there": {"cuda:0": "cuda:1", "cuda:1": "cuda:0"},
        "host": {"cuda:0": "cpu"},
        "push": {"cpu": "cuda:0"},
    }
}


@pytest.fixture(params=["memory", "tcp", "shared"])
def path(request: pytest.FixtureRequest) -> str:
    """Messages in this process, or over TCP; or the former with the devices' memory shared."""
    return str(request.param)


@pytest.fixture
def world(path: str) -> Iterator[World]:
    with recording_device() as device:
        if path == "shared":
            device.shared_memory = RecordingIpc(device)
        names = ("here", "there", "host", "push", "plain")
        transport = "tcp" if path == "tcp" else "memory"
        with LocalCluster(names, transport=transport, device_maps=MAPS) as cluster:
            world = World(cluster.agent("here"), device, torch.device("cuda", 1))
            if path == "shared":
                assert shares_memory(world.agent, "there", device)
            yield world


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Scenario, world: World) -> None:
    scenario(world)


@pytest.mark.parametrize("size", [1, 4096, 64 << 10, (4 << 20) + 1, 20 << 20])
def test_of_any_size(size: int, world: World) -> None:
    large(world, size)


# While a kernel runs that takes long.


@pytest.mark.parametrize("path", ["shared"])
def test_a_future_completes_while_its_callees_device_is_busy(world: World) -> None:
    agent, device = world.agent, world.device
    sent = device.tensor([1.0, 2.0])
    hold = device.hold(world.target)
    future = agent.rpc_async("there", double, (device.tensor(torch.ones(1 << 20)),))
    until(future.done)
    result = future.wait(non_blocking=True) * 2
    ours = device.record(device.current_stream(result.device))
    assert not device.is_done(ours)
    waited = threading.Event()
    waiter = threading.Thread(target=lambda: (future.wait(), waited.set()))
    waiter.start()
    assert agent.rpc_sync("there", echo, (1,)) == 1  # it serves on
    assert not waited.is_set()
    hold.release()
    waiter.join(DEADLINE)
    assert waited.is_set()
    assert device.to_host(result).unique().tolist() == [4.0]
    assert device.to_host(agent.rpc_sync("there", double, (sent,))).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("path", ["memory", "tcp"])
def test_by_the_host_a_future_completes_with_its_data(world: World) -> None:
    agent, device = world.agent, world.device
    hold = device.hold(world.target)
    futures = [agent.rpc_async("there", double, (device.tensor(torch.ones(size)),)) for size in (1, 1 << 20)]
    for number in range(20):
        assert agent.rpc_sync("there", echo, (number,)) == number  # nothing is held up behind it
    assert not any(future.done() for future in futures)
    hold.release()
    for future in futures:
        assert device.to_host(future.wait(non_blocking=True)).unique().tolist() == [2.0]


# When a device fails.


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cuda_error() -> Exception:
    return RuntimeError("CUDA error: an illegal memory access was encountered")


def still_good(world: World) -> bool:
    back = world.agent.rpc_sync("there", double, (world.device.tensor(torch.ones(100_000)),))
    return bool((world.device.to_host(back) == 2).all())


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_an_argument_finds_no_memory(size: int, world: World) -> None:
    sent = world.device.tensor(torch.ones(size))
    world.device.fail_next("empty", out_of_memory())
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        world.agent.rpc_sync("there", echo, (sent,))
    assert still_good(world)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_result_finds_no_memory_at_the_caller(size: int, world: World) -> None:
    value = world.agent.remote("there", double, (world.device.tensor(torch.ones(size)),))
    value.to_here()
    world.device.fail_next("empty", out_of_memory())
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        value.to_here()
    assert still_good(world)
    assert value.to_here().numel() == size


def fails_with_a_cuda_error(world: World, what: str) -> None:
    sent = world.device.tensor(torch.ones(1 << 20))
    world.device.fail_next(what, cuda_error())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        world.agent.rpc_sync("there", echo, (sent,))
    assert still_good(world)


def test_a_copy_that_fails_is_the_callers_error(world: World) -> None:
    fails_with_a_cuda_error(world, "copy")


@pytest.mark.parametrize("path", ["memory", "tcp"])
def test_an_event_that_fails_is_the_callers_error(world: World) -> None:
    """Where memory is shared, what cannot be exported goes by the host."""
    fails_with_a_cuda_error(world, "record")


# What a call leaves behind whose answer brings nothing to wait for.


class Weights:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.clone()

    def step(self) -> None:
        self.tensor += 1

    def step_and_count(self) -> int:
        self.tensor += 1
        return 1

    def fail(self) -> None:
        self.tensor += 1
        raise ValueError("behind the step")

    def scaled(self, by: torch.Tensor) -> torch.Tensor:
        return self.tensor * by


def test_what_a_call_has_changed_is_there_for_who_has_waited_for_it(world: World) -> None:
    device = world.device
    weights = world.agent.remote("there", Weights, (device.tensor([0.0]),))
    for _ in range(3):
        weights.rpc_sync().step()
        weights.remote().step().to_here()
        assert weights.rpc_sync().step_and_count() == 1
        assert weights.remote().step_and_count().to_here() == 1
        with pytest.raises(ValueError, match="behind the step"):
            weights.rpc_sync().fail()
        result = weights.rpc_async().scaled(device.tensor([2.0])).wait(non_blocking=True)
    assert device.to_host(result).tolist() == [30.0]


dropped = threading.Event()


@async_execution
def add_later(first: torch.Tensor, second: torch.Tensor) -> Future[torch.Tensor]:
    weakref.finalize(second, dropped.set)
    come: Future[torch.Tensor] = Future(devices=[first.device])
    result = come.then(lambda done: done.wait() + second)
    come.set_result(first * 1)
    return result


@pytest.mark.parametrize("kind", ["rpc_async", "remote"])
def test_what_a_callback_uses_is_kept_until_the_device_has_used_it(kind: str, world: World) -> None:
    device = world.device
    dropped.clear()
    one, two = device.tensor([1.0]), device.tensor([2.0])
    hold = device.hold(world.target)
    called = getattr(world.agent, kind)("there", add_later, (one, two))
    assert dropped.wait(DEADLINE)
    hold.release()
    result = called.wait() if kind == "rpc_async" else called.to_here()
    assert device.to_host(result).tolist() == [3.0]
