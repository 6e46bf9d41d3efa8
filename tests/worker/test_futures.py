from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rpcgroup.errors import CallCancelledError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.testing.cluster import LocalCluster

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
