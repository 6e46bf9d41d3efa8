"""What must hold with tensors on devices, whichever they are: CUDA's (test_calls.py) or recorded ones
(tests/worker/agent/test_on_devices.py).

A scenario calls as the worker `here`. The others are `there`, on whose devices those of `here` stand; `host`, where
`cuda:0` becomes the CPU; `push`, where the CPU becomes `cuda:0`; and `plain`, for which there is no map.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.cuda.runtime import Runtime, Stream, current_runtime
from rpcgroup.errors import DevicePlacementError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future, collect_all

__all__ = ["SCENARIOS", "World", "double", "echo", "large", "place", "until"]

DEADLINE: Final = 60.0
DTYPES: Final = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


@dataclass(frozen=True)
class World:
    agent: Agent
    """Of the worker `here`."""
    device: Any
    """Has `tensor(data, device=0)` and `to_host(tensor)`."""
    target: torch.device
    """What `cuda:0` of `here` is at `there`."""


Scenario = Callable[[World], None]
SCENARIOS: Final[list[Scenario]] = []
HERE: Final = torch.device("cuda", 0)
CPU: Final = torch.device("cpu")


def scenario(check: Scenario) -> Scenario:
    SCENARIOS.append(check)
    return check


# What the others run.


def echo(value: Any) -> Any:
    return value


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def place(tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Where it has arrived, and a result from there."""
    return str(tensor.device), tensor + 1


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a + b


def fail(tensor: torch.Tensor) -> torch.Tensor:
    raise ValueError(f"no good: {tensor.numel()} elements")


@async_execution
def double_later(tensor: torch.Tensor) -> Future[torch.Tensor]:
    come: Future[torch.Tensor] = Future(devices=[tensor.device])
    result = come.then(lambda done: done.wait() * 2)
    come.set_result(tensor + 1)
    return result


class Accumulator:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.total = tensor.clone()

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        self.total += tensor  # in place: what it keeps is used on the streams of all calls
        return self.total.clone()


def layer(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (tensor * weight).sin()


# The scenarios.


@scenario
def every_direction(world: World) -> None:
    agent, device = world.agent, world.device
    x, on_cpu = device.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
    expected = {
        "there": (x, str(world.target), HERE),
        "host": (x, "cpu", HERE),
        "push": (on_cpu, "cuda:0", CPU),
        "plain": (on_cpu, "cpu", CPU),
    }
    for name, (sent, arrived, back) in expected.items():
        where, result = agent.rpc_sync(name, place, (sent,))
        assert (name, where, result.device) == (name, arrived, back)
        assert device.to_host(result).tolist() == [2.0, 3.0]


@scenario
def every_dtype(world: World) -> None:
    for dtype in DTYPES:
        plain = torch.arange(12).reshape(3, 4).to(dtype)
        same(world, plain)


@scenario
def every_shape(world: World) -> None:
    grid = torch.arange(60.0).reshape(3, 4, 5)
    for plain in (
        torch.tensor(7.0),
        torch.empty(0),
        torch.empty(2, 0, 3),
        grid,
        torch.arange(7.0).expand(3, 7),
    ):
        same(world, plain)
    # Views are made on the device.
    on_device = world.device.tensor(grid)
    for view in (on_device.transpose(0, 2), on_device[1], on_device[:, ::2], on_device[2, 3, 4]):
        back = world.agent.rpc_sync("there", echo, (view,))
        assert torch.equal(world.device.to_host(back), world.device.to_host(view))


@scenario
def what_requires_grad_does_so_there(world: World) -> None:
    leaf = world.device.tensor([1.0, 2.0]).requires_grad_()
    back = world.agent.rpc_sync("there", echo, (leaf,))
    assert back.requires_grad
    assert torch.equal(world.device.to_host(back), world.device.to_host(leaf))


def same(world: World, plain: torch.Tensor) -> None:
    sent = world.device.tensor(plain)
    back = world.agent.rpc_sync("there", echo, (sent,))
    assert (back.dtype, back.shape, back.device) == (plain.dtype, plain.shape, HERE)
    assert torch.equal(world.device.to_host(back), plain)


@scenario
def many_tensors_of_one_message(world: World) -> None:
    sent = [world.device.tensor(torch.full((n * 1000,), float(n))) for n in range(20)]
    back = world.agent.rpc_sync("there", echo, ({"on": sent, "off": torch.ones(3)},))
    assert back["off"].device == CPU
    for n, tensor in enumerate(back["on"]):
        assert tensor.device == HERE
        assert world.device.to_host(tensor).tolist() == [float(n)] * (n * 1000)


@scenario
def an_unmapped_tensor_is_the_callers_error(world: World) -> None:
    with pytest.raises(
        DevicePlacementError, match=r"shape \(2,\) is on cuda:0.*on the way to plain; its map: none"
    ):
        world.agent.rpc_sync("plain", echo, (world.device.tensor([1.0, 2.0]),))
    assert world.agent.rpc_sync("plain", echo, (1,)) == 1


@scenario
def a_failure_leaves_the_worker_serving(world: World) -> None:
    x = world.device.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="no good: 2 elements"):
        world.agent.rpc_sync("there", fail, (x,))
    assert world.device.to_host(world.agent.rpc_sync("there", double, (x,))).tolist() == [2.0, 4.0]


@scenario
def a_function_that_answers_later(world: World) -> None:
    result = world.agent.rpc_sync("there", double_later, (world.device.tensor([1.0, 2.0]),))
    assert world.device.to_host(result).tolist() == [4.0, 6.0]


@scenario
def callbacks_in_a_chain(world: World) -> None:
    future = world.agent.rpc_async("there", double, (world.device.tensor([1.0, 2.0]),))
    for _ in range(3):
        future = future.then(lambda done: done.wait() * 2)
    result = future.wait(non_blocking=True) + 1
    assert world.device.to_host(result).tolist() == [17.0, 33.0]


@scenario
def futures_collected(world: World) -> None:
    calls = [world.agent.rpc_async("there", double, (world.device.tensor([float(n)]),)) for n in range(10)]
    total = collect_all(list(calls)).then(lambda done: sum(each.wait() for each in done.wait()))
    assert world.device.to_host(total.wait()).tolist() == [90.0]


@scenario
def results_on_a_stream_of_the_users(world: World) -> None:
    with stream_of_the_users():
        sent = world.device.tensor(torch.ones(100_000)) * 3
        future = world.agent.rpc_async("there", double, (sent,))
    with stream_of_the_users():
        assert world.device.to_host(future.wait(non_blocking=True) + 1).unique().tolist() == [7.0]


@scenario
def references(world: World) -> None:
    agent, device = world.agent, world.device
    value = agent.remote("there", double, (device.tensor([1.0, 2.0]),))
    assert device.to_host(value.to_here()).tolist() == [2.0, 4.0]
    kept = agent.remote("there", Accumulator, (device.tensor([1.0]),))
    for n in range(5):
        total = kept.rpc_sync().add(device.tensor([float(n)]))
    assert device.to_host(total).tolist() == [11.0]
    assert device.to_host(kept.remote().add(device.tensor([1.0])).to_here()).tolist() == [12.0]


@scenario
def one_reference_fetched_by_several_threads(world: World) -> None:
    value = world.agent.remote("there", double, (world.device.tensor(torch.ones(50_000)),))

    def fetch(number: int) -> None:
        with stream_of_the_users():
            assert world.device.to_host(value.to_here() * number).unique().tolist() == [2.0 * number]

    in_threads(fetch, 8)


@scenario
def calls_from_several_threads(world: World) -> None:
    def call(number: int) -> None:
        with stream_of_the_users():
            x = world.device.tensor(torch.full((30_000,), float(number)))
            for _ in range(4):
                x = world.agent.rpc_async("there", add, (x, x)).wait(non_blocking=True)
            assert world.device.to_host(x).unique().tolist() == [16.0 * number]

    in_threads(call, 6)


@scenario
def gradients_as_of_one_process(world: World) -> None:
    agent, device = world.agent, world.device
    with context(agent) as autograd:
        x = device.tensor([1.0, 2.0]).requires_grad_()
        weight = device.tensor([3.0, 4.0]).requires_grad_()
        once = agent.rpc_async("there", layer, (x, weight)).wait(non_blocking=True)
        twice = agent.rpc_sync("there", layer, (once * x, weight))
        agent.autograd.backward(autograd.id, [twice.sum()], False)
        gradients = {key: device.to_host(value) for key, value in autograd.gradients().items()}
    local_x = torch.tensor([1.0, 2.0], requires_grad=True)
    local_weight = torch.tensor([3.0, 4.0], requires_grad=True)
    layer(layer(local_x, local_weight) * local_x, local_weight).sum().backward()
    torch.testing.assert_close(gradients[x], local_x.grad)
    torch.testing.assert_close(gradients[weight], local_weight.grad)


# How they are made.


def large(world: World, size: int) -> None:
    """So many bytes there and back, the last of which tells whether all has come."""
    sent = world.device.tensor(torch.arange(size, dtype=torch.int64).to(torch.uint8))
    back = world.agent.rpc_async("there", add, (sent, sent)).wait(non_blocking=True)
    assert bool((back == sent + sent).all())


@contextmanager
def stream_of_the_users() -> Iterator[Stream]:
    runtime = runtime_of_this_process()
    stream = runtime.new_stream(HERE)
    with runtime.use([stream]):
        yield stream


def runtime_of_this_process() -> Runtime:
    runtime = current_runtime()
    assert runtime is not None
    return runtime


@contextmanager
def context(agent: Agent) -> Iterator[DistAutogradContext]:
    made = agent.autograd.new_context()
    try:
        yield made
    finally:
        agent.autograd.release(made.id)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.001)


def in_threads(target: Callable[[int], None], count: int) -> None:
    """Raises what one of them has failed with."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            target(number)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, count + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not [thread for thread in threads if thread.is_alive()]
    if failures:
        raise failures[0]
