from __future__ import annotations

import asyncio
import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from rpcgroup import futures
from rpcgroup.cuda.events import Events
from rpcgroup.cuda.runtime import current_runtime, use_runtime
from rpcgroup.errors import CallCancelledError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future, collect_all
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.recording_device import RecordingDevice, recording_device

PATIENCE = 30.0
TURNS = 200

gates: dict[str, Future[Any]] = {}
events: dict[str, threading.Event] = {}


def echo(x: Any) -> Any:
    return x


def fail(text: str) -> None:
    raise ValueError(text)


@async_execution
def when_opened(gate: str) -> Future[Any]:
    return gates[gate]


def wait_for_event(name: str) -> str:
    assert events[name].wait(PATIENCE)
    return name


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    gates.clear()
    events.clear()
    with LocalCluster("ab") as cluster:
        yield cluster


@pytest.fixture
def call(cluster: LocalCluster) -> Callable[..., Future[Any]]:
    def call(function: Callable[..., Any], *args: Any) -> Future[Any]:
        return cluster.agent("a").rpc_async("b", function, args)

    return call


def in_threads(count: int, function: Callable[[], Any]) -> list[Any]:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(function())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


# Set by hand.


def test_a_future_that_is_set_by_hand() -> None:
    future: Future[int] = Future()
    assert not future.done()
    with pytest.raises(RuntimeError, match="not done"):
        future.value()
    future.set_result(5)
    assert future.done()
    assert future.wait() == future.value() == 5
    assert future.wait(non_blocking=True) == 5


def test_a_future_that_fails_by_hand() -> None:
    future: Future[int] = Future()
    future.set_exception(KeyError("why"))
    assert future.done()
    for read in (future.wait, future.value):
        with pytest.raises(KeyError, match="why"):
            read()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_future_that_fails_with_what_is_no_exception(error: BaseException) -> None:
    future: Future[int] = Future()
    future.set_exception(error)
    with pytest.raises(type(error)):
        future.wait()


def test_a_future_is_set_once() -> None:
    future: Future[int] = Future()
    future.set_result(1)
    for again in (lambda: future.set_result(2), lambda: future.set_exception(ValueError())):
        with pytest.raises(RuntimeError, match="only be marked completed once"):
            again()
    assert future.wait() == 1


def test_it_is_torchs_future() -> None:
    future: Future[int] = Future()
    assert isinstance(future, torch.futures.Future)
    tensor = torch.ones(3)
    future.set_result([tensor])  # type: ignore[arg-type]
    assert future.wait()[0] is tensor  # type: ignore[index]


def test_many_threads_wait_for_one_future() -> None:
    future: Future[int] = Future()
    started = threading.Barrier(9)

    def wait() -> int:
        started.wait(PATIENCE)
        return future.wait()

    setter = threading.Thread(target=lambda: (started.wait(PATIENCE), future.set_result(7)))
    setter.start()
    assert in_threads(8, wait) == [7] * 8
    setter.join()


def test_callbacks_run_once_each_in_order() -> None:
    future: Future[int] = Future()
    order: list[Any] = []
    for n in range(3):
        future.add_done_callback(lambda done, n=n: order.append((n, done.value())))  # type: ignore[misc]
    assert not order
    future.set_result(5)
    assert order == [(0, 5), (1, 5), (2, 5)]
    future.add_done_callback(lambda done: order.append("late"))
    assert order[-1] == "late"


def test_callbacks_that_race_with_the_result_run_once() -> None:
    for _ in range(TURNS):
        future: Future[int] = Future()
        ran: list[int] = []
        barrier = threading.Barrier(3)

        def add(future: Future[int] = future, ran: list[int] = ran, barrier: Any = barrier) -> None:
            barrier.wait(PATIENCE)
            future.add_done_callback(lambda done: ran.append(done.value()))

        threads = [threading.Thread(target=add) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait(PATIENCE)
        future.set_result(1)
        for thread in threads:
            thread.join(PATIENCE)
        assert ran == [1, 1]


def test_then_chains_values_and_errors() -> None:
    future: Future[int] = Future()
    doubled = future.then(lambda done: done.wait() * 2)
    failed = doubled.then(lambda done: [][done.wait()])
    passed = failed.then(lambda done: done.wait())
    future.set_result(4)
    assert doubled.wait() == 8
    for last in (failed, passed):
        with pytest.raises(IndexError):
            last.wait()


def test_a_callback_that_exits_ends_nothing_but_its_own_future() -> None:
    future: Future[int] = Future()

    def leave(done: Future[int]) -> None:
        raise SystemExit(3)

    result = future.then(leave)
    future.set_result(1)
    with pytest.raises(SystemExit):
        result.wait()


def test_a_callback_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    future: Future[int] = Future()
    future.add_done_callback(lambda done: fail("in a callback"))
    ran = []
    future.add_done_callback(lambda done: ran.append(1))
    future.set_result(1)
    assert ran == [1], "the next one runs all the same"
    (record,) = caplog.records
    assert "a callback of a future failed" in record.message
    assert "in a callback" in str(record.exc_info)


# Of a call.


def test_a_call(call: Callable[..., Future[Any]]) -> None:
    future = call(echo, 5)
    assert future.wait() == 5
    assert future.done()
    assert future.value() == 5


def test_a_call_that_fails(call: Callable[..., Future[Any]]) -> None:
    future = call(fail, "why")
    for _ in range(2):
        with pytest.raises(ValueError, match="why"):
            future.wait()
    assert future.done()


def test_done_turns_true_without_anybody_waiting(call: Callable[..., Future[Any]]) -> None:
    future = call(echo, 5)
    arrived = threading.Event()
    future.add_done_callback(lambda done: arrived.set())
    assert arrived.wait(PATIENCE)
    assert future.done()
    assert future.value() == 5


def test_the_value_is_one_object_for_all_who_ask(call: Callable[..., Future[Any]]) -> None:
    future = call(echo, torch.ones(3))
    values = in_threads(8, future.wait)
    assert len(values) == 8
    assert all(value is values[0] for value in values)


def test_many_threads_wait_for_one_call(call: Callable[..., Future[Any]]) -> None:
    for turn in range(TURNS // 4):
        future = call(echo, turn)
        assert in_threads(4, future.wait) == [turn] * 4


def test_threads_wait_for_each_others_calls_on_one_link(call: Callable[..., Future[Any]]) -> None:
    futures = [call(echo, n) for n in range(64)]
    for values in in_threads(8, lambda: [future.wait() for future in reversed(futures)]):
        assert values == list(range(63, -1, -1))


def test_callbacks_on_answers_that_arrive_meanwhile(call: Callable[..., Future[Any]]) -> None:
    for turn in range(TURNS):
        assert call(echo, turn).then(lambda done: done.wait() + 1).wait() == turn + 1


def test_a_waiter_and_a_callback_of_one_call(call: Callable[..., Future[Any]]) -> None:
    for turn in range(TURNS):
        future = call(echo, turn)
        ran = threading.Event()
        future.add_done_callback(lambda done, ran=ran: ran.set())  # type: ignore[misc]
        assert future.wait() == turn
        assert ran.wait(PATIENCE)


def test_callbacks_may_call_the_same_peer(cluster: LocalCluster, call: Callable[..., Future[Any]]) -> None:
    again = call(echo, 1).then(lambda done: cluster.agent("a").rpc_sync("b", echo, (done.wait() + 1,)))
    assert again.wait() == 2
    deep = call(echo, 0)
    for _ in range(50):
        deep = deep.then(lambda done: cluster.agent("a").rpc_sync("b", echo, (done.wait() + 1,)))
    assert deep.wait() == 50


def test_a_slow_callback_does_not_keep_others_from_their_answers(
    cluster: LocalCluster, call: Callable[..., Future[Any]]
) -> None:
    gate, entered = threading.Event(), threading.Event()

    def block(done: Future[Any]) -> None:
        entered.set()
        gate.wait(PATIENCE)

    gates["first"] = Future()
    call(when_opened, "first").add_done_callback(block)
    gates["first"].set_result(None)  # not before: of an answer that is there the callback runs at once, here
    assert entered.wait(PATIENCE)
    for n in range(20):
        assert call(echo, n).wait() == n
        assert call(echo, n).then(lambda done: done.wait()).wait() == n
    gate.set()


def test_torch_collects_and_waits(call: Callable[..., Future[Any]]) -> None:
    assert torch.futures.wait_all([call(echo, n) for n in range(100)]) == list(range(100))
    collected = torch.futures.collect_all([call(echo, n) for n in range(10)]).wait()
    assert [future.value() for future in collected] == list(range(10))
    mixed = torch.futures.collect_all([call(echo, 1), call(fail, "why")])
    with pytest.raises(ValueError, match="why"):
        mixed.wait()[1].wait()
    with pytest.raises(ValueError, match="why"):
        torch.futures.wait_all([call(echo, 1), call(fail, "why")])


def test_asyncio_awaits(call: Callable[..., Future[Any]]) -> None:
    async def main() -> list[Any]:
        one = await call(echo, 1)
        many = await asyncio.gather(*[_await(call(echo, n)) for n in range(50)])
        with pytest.raises(ValueError, match="why"):
            await call(fail, "why")
        settled: Future[int] = Future()
        settled.set_result(9)
        return [one, *many, await settled]

    assert asyncio.run(main()) == [1, *range(50), 9]


async def _await(future: Future[Any]) -> Any:
    return await future


def test_cancelling_a_task_cancels_its_call(cluster: LocalCluster, call: Callable[..., Future[Any]]) -> None:
    gates["never"] = Future()

    async def main() -> Future[Any]:
        future = call(when_opened, "never")
        task = asyncio.ensure_future(_await(future))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return future

    future = asyncio.run(main())
    with pytest.raises(CallCancelledError):
        future.wait()
    gates["never"].set_result(None)


def test_the_loop_may_be_gone_when_the_answer_comes(
    cluster: LocalCluster, call: Callable[..., Future[Any]]
) -> None:
    gates["late"] = Future()
    future = call(when_opened, "late")

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(_await(future))), 0.01)

    asyncio.run(main())
    gates["late"].set_result(3)
    with pytest.raises(CallCancelledError):  # the end of the loop cancelled the task
        future.wait()


def test_cancel_says_whether_there_was_something_to_cancel(call: Callable[..., Future[Any]]) -> None:
    gates["never"] = Future()
    future = call(when_opened, "never")
    assert future.cancel()
    assert not future.cancel()
    with pytest.raises(CallCancelledError, match="the call to b was cancelled"):
        future.wait()
    done = call(echo, 1)
    done.wait()
    assert not done.cancel()
    assert not Future().cancel()
    gates["never"].set_result(None)


# With devices.

ONE, TWO = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def device() -> Iterator[RecordingDevice]:
    with recording_device() as device:
        yield device


def filled(device: RecordingDevice, where: torch.device = ONE) -> Future[torch.Tensor]:
    """Settled with what a stream writes that is no longer the current one."""
    future: Future[torch.Tensor] = Future(devices=[ONE, TWO])
    with device.use([device.new_stream(where)]):
        future.set_result(device.tensor([1.0, 2.0], where))
    return future


def test_without_an_accelerator_devices_have_no_effect() -> None:
    assert current_runtime() is None
    future: Future[torch.Tensor] = Future(devices=[0])
    doubled = future.then(lambda done: done.wait() * 2)
    future.add_done_callback(lambda done: None)
    future.set_result(torch.ones(2))
    assert doubled.wait(non_blocking=True).tolist() == [2.0, 2.0]


def test_a_value_of_the_host_has_nothing_to_wait_for(device: RecordingDevice) -> None:
    with device_held(device):
        future: Future[int] = Future(devices=[0])
        future.set_result(1)
        assert future.then(lambda done: done.wait() + 1).wait() == 2


def test_waiting_blocks_the_host_until_the_device_is_done(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = device.hold(0)
    future = filled(device)
    assert future.done(), "the value can be used in order"
    other = future.wait(non_blocking=True) + 1
    waiting, waited = threading.Event(), threading.Event()
    synchronize = device.synchronize
    monkeypatch.setattr(device, "synchronize", lambda event: (waiting.set(), synchronize(event)))

    def wait() -> None:
        future.wait()
        waited.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(PATIENCE)
    assert not waited.is_set()
    held.release()
    thread.join(PATIENCE)
    assert waited.is_set()
    assert device.to_host(other).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("non_blocking", [False, True])
def test_what_is_enqueued_after_a_wait_is_ordered(device: RecordingDevice, non_blocking: bool) -> None:
    future = filled(device)
    with device.use([device.new_stream(ONE)]):
        enqueued = device.to_host(future.wait(non_blocking).add_(1))
    assert enqueued.tolist() == [2.0, 3.0]


def test_a_value_that_is_only_looked_at_is_not_ordered() -> None:
    """As torch's; and so this proves that the checker sees a wait that is missing."""
    device = RecordingDevice()
    with in_use(device):
        filled(device).value() + 1
    assert device.violations


MISSING: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "wait": lambda patch: patch.setattr(Events, "wait", lambda self: None),
    "retain": lambda patch: patch.setattr(RecordingDevice, "retain", lambda *_: None),
    "record": lambda patch: patch.setattr(Events, "record", lambda runtime, tensors: Events(runtime, {}, ())),
    "streams": lambda patch: patch.setattr(Future, "_streams", nullcontext),
    "tensors": lambda patch: patch.setattr(futures, "device_tensors", lambda *_: []),
}


@pytest.mark.parametrize("missing", [None, *MISSING])
def test_each_step_of_a_chain_is_needed(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, two threads, fresh streams for every callback: without any one step the order is wrong."""
    device = RecordingDevice(pool=32)
    with in_use(device):
        if missing is not None:
            MISSING[missing](monkeypatch)
        source: Future[torch.Tensor] = Future(devices=[0, 1])
        chained = source.then(lambda done: done.value().to(TWO)).then(lambda done: (done.value() * 2).to(ONE))
        noted = chained.then(lambda done: done.value() + 1)

        def fill(source: Future[torch.Tensor] = source) -> None:
            with device.use([device.new_stream(ONE)]):
                source.set_result(device.tensor([1.0, 2.0], ONE))

        del source
        in_threads(1, fill)
        late = chained.then(lambda done: done.value() + 1)
        result = (
            chained.wait(non_blocking=True) + noted.wait(non_blocking=True) + late.wait(non_blocking=True)
        )
        assert device.to_host(result).tolist() == [8.0, 14.0]
        del chained, noted, late
        gc.collect()
    assert bool(device.violations) == (missing is not None)


def test_callbacks_run_on_fresh_streams_of_the_priority(device: RecordingDevice) -> None:
    future: Future[torch.Tensor] = Future(devices=[0, 1], priority=-1)
    streams: list[Any] = []

    def note(done: Future[torch.Tensor]) -> torch.Tensor:
        streams.append((device.current_stream(ONE), device.current_stream(TWO)))
        return done.value() * 2

    child = future.then(note)
    child.add_done_callback(note)  # type: ignore[arg-type]
    here = device.current_stream(ONE), device.current_stream(TWO)
    future.set_result(device.tensor([1.0]))
    future.then(note)
    assert len({stream for pair in (*streams, here) for stream in pair}) == 8
    assert {stream.priority for pair in streams for stream in pair} == {-1}
    assert (device.current_stream(ONE), device.current_stream(TWO)) == here
    child.wait()


def test_a_callback_is_not_held_up_by_the_device(device: RecordingDevice) -> None:
    with device_held(device):
        future, other = filled(device), filled(device, TWO)
        both = future.then(lambda done: [done.wait() + 1, other.wait().to(ONE)])
        together = collect_all([future, other]).then(lambda done: [each.wait() for each in done.wait()])
        for child in (both, together):
            assert child.done()
            child.wait(non_blocking=True)


def test_a_future_of_a_callback_on_the_host_has_the_devices_still(device: RecordingDevice) -> None:
    future: Future[int] = Future(devices=[0], priority=-1)
    made = future.then(lambda done: device.tensor([float(done.wait())]))
    again = made.then(lambda done: done.value() + 1)
    future.set_result(5)
    assert device.to_host(again.wait(non_blocking=True)).tolist() == [6.0]


def test_a_tensor_on_an_unexpected_device_fails_the_future(device: RecordingDevice) -> None:
    """Its callbacks run all the same, on streams of the devices that it has."""
    future: Future[torch.Tensor] = Future(devices=[1])
    child = future.then(lambda done: device.tensor([1.0], TWO))
    future.set_result(device.tensor([1.0], ONE))
    with pytest.raises(
        ValueError,
        match=r"^The result contained tensors residing on device\(s\) cuda:0 "
        r"which are not among the expected device\(s\) cuda:1$",
    ):
        future.wait()
    assert device.to_host(child.wait()).tolist() == [1.0]
    grandchild = child.then(lambda done: device.tensor([1.0], ONE))
    with pytest.raises(ValueError, match="not among the expected"):
        grandchild.wait()


def test_a_failure_of_the_device_is_the_waiters(device: RecordingDevice) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    future = filled(device)
    device.fail_next("synchronize", error)
    with pytest.raises(RuntimeError) as raised:
        future.wait()
    assert raised.value is error
    device.fail_next("record", error)
    failed = filled(device)
    for read in (failed.wait, failed.value, failed.then(lambda done: done.wait()).wait):
        with pytest.raises(RuntimeError) as raised:
            read()
        assert raised.value is error


def test_where_the_device_gives_no_streams_callbacks_learn_it(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run, since others wait for what they settle."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def new_stream(*_: Any) -> Any:
        raise error

    future = filled(device)
    monkeypatch.setattr(device, "new_stream", new_stream)
    heard: list[Any] = []

    def listen(done: Future[Any]) -> None:
        with pytest.raises(RuntimeError) as raised:
            done.wait()
        heard.append(raised.value)

    future.add_done_callback(listen)
    child = future.then(lambda done: done.wait())
    collected = collect_all([future])
    for failed in (child, collected):
        with pytest.raises(RuntimeError) as raised:
            failed.wait()
        heard.append(raised.value)
    assert heard == [error] * 3
    assert future.then(lambda done: 5).wait() == 5


def test_collected_futures_are_waited_for_together(device: RecordingDevice) -> None:
    held = device.hold(1)
    host: Future[int] = Future()
    host.set_result(5)
    theirs: torch.futures.Future[int] = torch.futures.Future()
    theirs.set_result(6)
    late: Future[torch.Tensor] = Future(devices=[0], priority=-1)
    collected = torch.futures.collect_all([filled(device), host, theirs, filled(device, TWO), late])
    added = collected.then(lambda done: done.wait()[0].value() + done.wait()[3].value().to(ONE))
    assert not collected.done()
    late.set_result(device.tensor([1.0]))
    one, _, _, two, _ = collected.wait(non_blocking=True)
    one.value() + 1
    two.value() + 1
    held.release()
    assert device.to_host(added.wait()).tolist() == [2.0, 4.0]
    values = torch.futures.wait_all([filled(device), host, theirs])
    assert device.to_host(values[0] + 1).tolist() == [2.0, 3.0]
    assert values[1:] == [5, 6]


def test_torchs_part_has_the_devices_where_torch_knows_them(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    init = torch._C.Future.__init__
    monkeypatch.setattr(
        torch._C.Future, "__init__", lambda self, devices: (given.append(devices), init(self, []))[1]
    )
    Future(devices=[0])
    Future()
    assert given == [[], []], "those of a recording device are unknown to torch"
    monkeypatch.setattr(device, "tensor_type", torch.Tensor)
    Future(devices=[1, 0]).then(lambda done: None)
    Future()
    assert given[2:] == [[ONE, TWO], [ONE, TWO], []]


def test_asyncio_is_not_held_up_by_a_device(device: RecordingDevice) -> None:
    async def main() -> torch.Tensor:
        with device_held(device):
            return (await filled(device)) + 1

    assert device.to_host(asyncio.run(main())).tolist() == [2.0, 3.0]


def test_random_chains_over_devices_and_threads_are_ordered() -> None:
    """Every value is used on the streams of another thread, in place, and let go at once."""
    for seed in range(25):
        choose = random.Random(seed)
        with recording_device(pool=choose.choice([2, 32])) as device:
            ends = [_random_chain(device, random.Random(seed * 10 + n)) for n in range(4)]
            collected = collect_all([future for future, _ in ends])
            total = collected.then(lambda done: sum(f.value().to(ONE) for f in done.value()))
            expected = sum(value for _, value in ends)
            del ends, collected
            assert total.wait(choose.random() < 0.5).item() == expected


def _random_chain(device: RecordingDevice, choose: random.Random) -> tuple[Future[torch.Tensor], float]:
    source: Future[torch.Tensor] = Future(devices=[0, 1], priority=choose.choice([0, -1]))
    future, expected = source, 1.0
    where = choose.choice([ONE, TWO])
    for _ in range(choose.randrange(1, 6)):
        number, to, how = choose.randrange(1, 4), choose.choice([ONE, TWO]), choose.randrange(3)
        if how == 0:
            future = future.then(lambda done, number=number, to=to: (done.value() * number).to(to))
            expected *= number
        elif how == 1:
            future = future.then(lambda done, number=number: done.wait().add_(number))
            expected += number
        else:
            future = _handed_on(device, future, to)
            expected += 1

    def fill() -> None:
        with device.use([device.new_stream(where)]):
            source.set_result(device.tensor(1.0, where))

    in_threads(1, fill)
    return future, expected


def _handed_on(
    device: RecordingDevice, future: Future[torch.Tensor], to: torch.device
) -> Future[torch.Tensor]:
    """By a callback that settles another future in another thread, on that one's streams."""
    result: Future[torch.Tensor] = Future(devices=[0, 1])

    def settle() -> None:
        with device.use([device.new_stream(to)]):
            result.set_result(future.wait(non_blocking=True).to(to) + 1)

    future.add_done_callback(lambda done: in_threads(1, settle) and None)
    return result


@contextmanager
def device_held(device: RecordingDevice) -> Iterator[None]:
    """Whoever waits for one of its devices here does not go on."""
    holds = [device.hold(0), device.hold(1)]
    try:
        yield
    finally:
        for hold in holds:
            hold.release()


@contextmanager
def in_use(device: RecordingDevice) -> Iterator[None]:
    use_runtime(device)
    try:
        yield
    finally:
        use_runtime(None)


# Let go.


def unheard(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "nobody asked for its result" in r.getMessage()]


def test_a_failure_that_nobody_asks_for_is_logged_once(
    cluster: LocalCluster, call: Callable[..., Future[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    call(fail, "unheard")
    until(lambda: unheard(caplog))
    gc.collect()
    (message,) = unheard(caplog)
    assert "unheard" in message
    assert "On WorkerInfo" in message


def test_a_failure_that_somebody_asked_for_is_not_logged(
    call: Callable[..., Future[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for ask in (lambda f: f.wait(), lambda f: f.value(), lambda f: asyncio.run(_await(f))):
        future = call(fail, "heard")
        until(future.done)
        with pytest.raises(ValueError, match="heard"):
            ask(future)
    for attach_to in (lambda f: None, lambda f: until(f.done)):
        future = call(fail, "heard")
        attach_to(future)
        future.then(lambda done: None).wait()
        del future
        gc.collect()
    assert not unheard(caplog)


def test_a_value_goes_with_its_last_user(call: Callable[..., Future[Any]]) -> None:
    """Without waiting for the garbage collector: it can be a gigabyte."""
    gc.disable()
    try:
        future = call(echo, torch.ones(100_000))
        value = weakref.ref(future.wait())
        gone = weakref.ref(future)
        del future
        assert gone() is None
        assert value() is None
    finally:
        gc.enable()


def test_a_future_that_is_let_go_before_its_answer_comes(
    cluster: LocalCluster, call: Callable[..., Future[Any]]
) -> None:
    for n in range(100):
        call(echo, torch.full((10,), n))
    assert call(echo, 1).wait() == 1
    assert cluster.agent("a").finish_calls(PATIENCE)


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)
