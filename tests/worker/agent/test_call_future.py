"""torch's part of a call's future is made when torch asks for it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.futures import collect_all, wait_all

import rpcgroup.agent.call_future as call_future
from rpcgroup.agent.agent import Agent
from rpcgroup.agent.call import Call
from rpcgroup.agent.call_future import CallFuture
from rpcgroup.agent.options import AgentOptions
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.runtime import current_runtime, use_runtime
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import Hold, RecordingDevice, recording_device
from rpcgroup.wire.frames import Body
from rpcgroup.wire.messages import MessageType

_gate = threading.Event()
DEADLINE = 20.0
RESPONSE = int(MessageType.RESPONSE)
ONE, TWO = torch.device("cuda", 0), torch.device("cuda", 1)


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
    plain: torch.futures.Future[int] = torch.futures.Future()
    plain.set_result(7)
    chained = agent.rpc_async("b", echo, (1,)).then(lambda done: done.wait() + 1)
    assert wait_all([plain, chained]) == [7, 2]


# Answers that came onto devices.


class AnsweringLink:
    """What a call needs of its link, with an answer whose decoding uses what came: its tensors, doubled in place."""

    def __init__(self, device: RecordingDevice, priority: int = 0) -> None:
        self.device = device
        self.agent: Any = SimpleNamespace(
            on_devices=SimpleNamespace(devices=(ONE, TWO), priority=priority),
            pool=SimpleNamespace(submit=lambda run: run()),
        )
        self.peer = SimpleNamespace(answers_reach_devices=False)
        self.unsettled: dict[int, CallFuture[Any]] = {}
        self.claimed: dict[int, object] = {}
        self.activity = self.eager_calls = 0
        self.eager = False
        self.priorities: list[int] = []

    def expect_eager(self) -> None:
        self.eager_calls += 1

    def decode_answer(self, kind: int, flags: int, body: Any) -> Any:
        tensors = body.events.tensors
        self.priorities.append(self.device.current_stream(ONE).priority)
        return [tensor.mul_(2) for tensor in tensors] if len(tensors) > 1 else tensors[0].mul_(2)

    def call(self) -> CallFuture[Any]:
        return self.started(CallFuture.pending())

    def started(self, call: Any) -> Any:
        call.link, call.id = self, 1
        return call

    def answer(self, call: Any, *devices: torch.device) -> None:
        """As a transfer does: on streams of its own."""
        on = devices or (ONE,)
        with self.device.use([self.device.new_stream(where) for where in on]):
            tensors = [self.device.tensor([1.0, 2.0], where) for where in on]
            call.complete(
                (RESPONSE, 1, 1, 0, 0, Body(bytearray(), 0, None, Events.record(self.device, tensors)))
            )
        if isinstance(call, CallFuture) and self.eager:
            self.unsettled.pop(call.id).settle()


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


@pytest.fixture
def unchecked() -> Iterator[RecordingDevice]:
    device = RecordingDevice(pool=32)
    use_runtime(device)
    yield device
    use_runtime(None)


@pytest.fixture
def link(device: RecordingDevice) -> AnsweringLink:
    return AnsweringLink(device)


def blocked_on_device(device: RecordingDevice, held: Hold, wait: Callable[[], Any]) -> Any:
    """What `wait` gives, having waited for the device, which is released."""
    entered = threading.Event()
    synchronize = device.synchronize
    results: list[Any] = []

    def noted(event: Any) -> None:
        entered.set()
        synchronize(event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "synchronize", noted)
        thread = threading.Thread(target=lambda: results.append(wait()))
        thread.start()
        assert entered.wait(DEADLINE)
        assert not results
        held.release()
        thread.join(DEADLINE)
    return results[0]


def test_a_synchronous_call_waits_for_the_device(device: RecordingDevice, link: AnsweringLink) -> None:
    held, call = device.hold(0), link.started(Call())
    link.answer(call)
    assert blocked_on_device(device, held, call.wait).wrapped.tolist() == [2.0, 4.0]


def test_a_future_waits_for_the_device(device: RecordingDevice, link: AnsweringLink) -> None:
    held, future = device.hold(0), link.call()
    link.answer(future)
    assert blocked_on_device(device, held, future.wait).wrapped.tolist() == [2.0, 4.0]


def test_a_future_need_not_wait_for_the_device(device: RecordingDevice, link: AnsweringLink) -> None:
    held = device.hold(0)
    future = link.call()
    link.answer(future, ONE, TWO)
    assert future.done()
    one, two = future.wait(non_blocking=True)
    total = one + two.to(ONE)
    held.release()
    assert device.to_host(total).tolist() == [4.0, 8.0]


def test_every_waiter_is_ordered_behind_the_decoding(device: RecordingDevice, link: AnsweringLink) -> None:
    future = link.call()
    link.answer(future)
    for _ in range(3):
        with device.use([device.new_stream(ONE)]):
            assert device.to_host(future.wait(non_blocking=True)).tolist() == [2.0, 4.0]


def test_a_value_orders_nothing(unchecked: RecordingDevice) -> None:
    link = AnsweringLink(unchecked)
    future = link.call()
    link.answer(future)
    value = future.value()
    assert not unchecked.violations, "it was decoded in order"
    value + 1
    assert unchecked.violations


@pytest.mark.parametrize("late", [False, True])
def test_callbacks_use_the_value_in_order(device: RecordingDevice, link: AnsweringLink, late: bool) -> None:
    held = device.hold(0)
    future = link.call()
    if late:
        link.answer(future)
    moved = future.then(lambda done: done.wait().to(TWO))
    summed = moved.then(lambda done: done.value() + 1)
    if not late:
        link.answer(future)
    assert summed.done(), "no callback is held up by the device"
    assert moved._devices == summed._devices == (ONE, TWO)
    held.release()
    assert device.to_host(summed.wait()).tolist() == [3.0, 5.0]


def test_the_streams_have_the_agents_priority(device: RecordingDevice) -> None:
    link = AnsweringLink(device, priority=-1)
    future = link.call()
    ran = future.then(lambda done: [device.current_stream(where).priority for where in (ONE, TWO)])
    link.answer(future)
    assert link.priorities == [-1]
    assert ran.wait() == [-1, -1]


def test_calls_are_collected_with_their_devices(device: RecordingDevice, link: AnsweringLink) -> None:
    held = device.hold(1)
    futures = [link.call() for _ in range(3)]
    collected = collect_all(futures)
    for future, where in zip(futures, (ONE, TWO, ONE), strict=True):
        link.answer(future, where)
    one, two, three = (future.value() for future in collected.wait(non_blocking=True))  # type: ignore[call-arg]
    total = one + two.to(ONE) + three
    held.release()
    assert device.to_host(total).tolist() == [6.0, 12.0]


def test_torchs_part_is_filled_in_order(device: RecordingDevice, link: AnsweringLink) -> None:
    before, after = link.call(), link.call()
    before.materialize()
    for future in (before, after):
        link.answer(future)
        future.wait()
    after.materialize()
    for future in (before, after):
        assert torch.futures.Future.wait(future) is future.value()


def test_a_device_that_fails_fails_its_waiters(device: RecordingDevice, link: AnsweringLink) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    for call in (Call(), CallFuture.pending()):
        link.answer(link.started(call))
        device.fail_next("synchronize", error)
        with pytest.raises(RuntimeError) as raised:
            call.wait()
        assert raised.value is error
    future = link.call()
    link.answer(future)
    device.fail_next("record", error)
    with pytest.raises(RuntimeError) as raised:
        future.wait(non_blocking=True)
    assert raised.value is error


@pytest.mark.parametrize("missing", ["wait", "retain", "renewed"])
def test_each_step_is_needed(
    missing: str, unchecked: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "retain":
        monkeypatch.setattr(RecordingDevice, "retain", lambda *_: None)
    else:
        monkeypatch.setattr(Events, missing, lambda self: self)
    link = AnsweringLink(unchecked)
    future = link.call()
    link.answer(future)
    future.wait(non_blocking=True) + 1
    del future
    gc.collect()
    assert unchecked.violations


# Between two agents.


def made(number: float) -> torch.Tensor:
    """On the callee's second device."""
    device: Any = current_runtime()
    return device.tensor([number, 2 * number], TWO)  # type: ignore[no-any-return]


@pytest.fixture
def caller(device: RecordingDevice) -> Iterator[Agent]:
    """Its `cuda:0` is the callee's `cuda:1`."""
    maps = {"a": {"b": {"cuda:0": "cuda:1"}}}
    with LocalCluster("ab", device_maps=maps, options=AgentOptions(stream_priority=-1)) as cluster:
        yield cluster.agent("a")


def test_a_call_is_done_before_the_callers_device_is(device: RecordingDevice, caller: Agent) -> None:
    held = device.hold(ONE)
    future = caller.rpc_async("b", made, (3.0,))
    changed = future.wait(non_blocking=True) + 1
    assert future.done()
    doubled = future.then(lambda done: done.wait() * 2)
    assert torch.futures.wait_all([caller.rpc_async("b", echo, (5,))]) == [5]
    assert blocked_on_device(device, held, future.wait).device == ONE
    assert device.to_host(changed).tolist() == [4.0, 7.0]
    assert device.to_host(doubled.wait()).tolist() == [6.0, 12.0]


def test_a_synchronous_call_is_done_with_the_device(device: RecordingDevice, caller: Agent) -> None:
    held = device.hold(ONE)
    value = blocked_on_device(device, held, lambda: caller.rpc_sync("b", made, (1.0,)))
    assert value.wrapped.tolist() == [1.0, 2.0]


def test_calls_await_each_other_in_order(device: RecordingDevice, caller: Agent) -> None:
    def priorities(done: Any) -> list[int]:
        return [device.current_stream(where).priority for where in (ONE,)]

    async def both() -> torch.Tensor:
        first, second = caller.rpc_async("b", made, (1.0,)), caller.rpc_async("b", made, (2.0,))
        return await first + await second

    assert device.to_host(asyncio.run(both())).tolist() == [3.0, 6.0]
    futures = [caller.rpc_async("b", made, (float(n),)) for n in range(5)]
    total = collect_all(futures).then(lambda done: sum(each.value() for each in done.value()))
    assert device.to_host(total.wait()).tolist() == [10.0, 20.0]
    assert caller.rpc_async("b", echo, (1,)).then(priorities).wait() == [-1]


def test_threads_wait_for_chains_of_calls(device: RecordingDevice, caller: Agent) -> None:
    results: dict[int, list[float]] = {}

    def run(number: int) -> None:
        future = caller.rpc_async("b", made, (float(number),)).then(lambda done: done.wait().mul_(2))
        for _ in range(3):
            future = future.then(lambda done: done.value() + caller.rpc_sync("b", made, (1.0,)))
        results[number] = device.to_host(future.wait(non_blocking=bool(number % 2))).tolist()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == {number: [2.0 * number + 3, 4.0 * number + 6] for number in range(6)}
