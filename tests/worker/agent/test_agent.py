from __future__ import annotations

import functools
import math
import operator
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.options import AgentOptions
from rpcgroup.errors import (
    CallTimeoutError,
    NotInitializedError,
    PeerUnreachableError,
    SerializationError,
    UnknownWorkerError,
)
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.membership.record import MemberRecord
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.transport.tcp import TcpTransport
from rpcgroup.worker_info import WorkerInfo

PATIENCE = 30.0

cluster_of_test: LocalCluster
events: dict[str, threading.Event] = {}
gates: dict[str, Future[Any]] = {}
runs: list[Any] = []


@pytest.fixture(params=["memory", "tcp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    global cluster_of_test
    events.clear()
    gates.clear()
    runs.clear()
    with LocalCluster("abc", transport=request.param) as cluster_of_test:
        yield cluster_of_test


@pytest.fixture
def a(cluster: LocalCluster) -> Agent:
    return cluster.agent("a")


def echo(x: Any = None) -> Any:
    return x


def add(x: Any, y: Any = 0, *, z: Any = 0) -> Any:
    return x + y + z


def nothing() -> None:
    runs.append(1)


def run(mark: Any) -> None:
    runs.append(mark)


def wait_for(name: str) -> str:
    runs.append(name)
    assert events[name].wait(PATIENCE)
    return name


def set_event(name: str) -> None:
    events[name].set()


@async_execution
def when_opened(gate: str) -> Future[Any]:
    return gates[gate]


@async_execution
def not_a_future() -> int:
    return 3


@async_execution
def fails_before_its_future() -> Future[Any]:
    raise ValueError("too early")


class Custom(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(code, why)


class Exits:
    def __reduce__(self) -> Any:
        return os._exit, (3,)


class Worker:
    count = 0

    @staticmethod
    def static(x: int) -> int:
        return x + 1

    @classmethod
    def of_class(cls, x: int) -> int:
        return x + 2

    def method(self, x: int) -> int:
        return x + 3


def fail(kind: str) -> None:
    if kind == "custom":
        raise Custom(3, "why")
    if kind == "exit":
        raise SystemExit(3)
    raise {"key": KeyError, "value": ValueError}[kind]("why")


def back_and_forth(depth: int, names: tuple[str, str]) -> int:
    """Calls the other, which calls this one, `depth` times in all."""
    if not depth:
        return 0
    here, there = names
    return 1 + cluster_of_test.agent(here).rpc_sync(
        there, back_and_forth, (depth - 1, (there, here)), timeout=100
    )


def fail_at(depth: int, names: tuple[str, str]) -> None:
    if not depth:
        raise KeyError("at the bottom")
    here, there = names
    cluster_of_test.agent(here).rpc_sync(there, fail_at, (depth - 1, (there, here)), timeout=100)


def call_back(caller: str, callee: str, x: int) -> int:
    result: int = cluster_of_test.agent(callee).rpc_sync(caller, add, (x, 1))
    return result


class CallsWhenUnpickled:
    """Its unpickling, at whichever end, makes a call to the peer that sent it."""

    def __init__(self, here: str, there: str, value: int) -> None:
        self.args = here, there, value

    def __reduce__(self) -> Any:
        return _call_when_unpickled, self.args


def _call_when_unpickled(here: str, there: str, value: int) -> Any:
    return cluster_of_test.agent(here).rpc_sync(there, add, (value, 1))


def make_calls_when_unpickled(here: str, there: str, value: int) -> CallsWhenUnpickled:
    return CallsWhenUnpickled(here, there, value)


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


# Calls and their arguments.


def test_sync_async_and_remote(a: Agent) -> None:
    assert a.rpc_sync("b", add, (1, 2)) == 3
    assert a.rpc_async("b", add, (1, 2)).wait() == 3
    assert a.remote("b", add, (1, 2)).to_here() == 3


def test_positional_and_keyword_arguments(a: Agent) -> None:
    assert a.rpc_sync("b", add, args=(1,), kwargs={"y": 2, "z": 3}) == 6
    assert a.rpc_sync("b", add, kwargs={"x": 1}) == 1
    assert a.rpc_sync("b", echo) is None
    assert a.rpc_sync("b", nothing) is None
    assert a.rpc_sync("b", lambda *args, **kwargs: (args, kwargs), (1,), {"x": 2}) == ((1,), {"x": 2})


def test_by_name_by_id_and_by_info(cluster: LocalCluster, a: Agent) -> None:
    record = cluster["b"].me
    for target in ("b", record.id, WorkerInfo("b", record.id)):
        assert a.rpc_sync(target, echo, (target,)) == target


def test_oneself(a: Agent) -> None:
    runs.clear()
    for target in ("a", a.info.id, a.info):
        assert a.rpc_sync(target, add, (1, 2)) == 3
        assert a.rpc_async(target, add, (1, 2)).wait() == 3
        assert a.remote(target, add, (1, 2)).to_here() == 3
    sent = [1]
    received = a.rpc_sync("a", echo, (sent,))
    assert received == sent
    assert received is not sent, "as from any other worker"


@pytest.mark.parametrize(
    "function",
    [
        math.factorial,
        Worker.static,
        Worker.of_class,
        Worker().method,
        lambda x: x + 1,
        functools.partial(add, 3),
        operator.neg,
        int,
    ],
    ids=["builtin", "static", "classmethod", "bound", "lambda", "partial", "operator", "class"],
)
def test_anything_that_can_be_called(a: Agent, function: Any) -> None:
    for _ in range(3):
        assert a.rpc_sync("b", function, (4,)) == function(4)


def test_a_callable_that_cannot_be_hashed(a: Agent) -> None:
    partial = functools.partial(add, [1])
    assert a.rpc_sync("b", partial, ([2],), {"z": []}) == [1, 2]


def test_closures_over_tensors(a: Agent) -> None:
    weight = torch.ones(1000, 100)
    assert torch.equal(
        a.rpc_sync("b", lambda x: x @ weight, (torch.ones(2, 1000),)), torch.full((2, 100), 1000.0)
    )


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(5),
        torch.randn(300, 300),
        [torch.ones(2), {"x": torch.zeros(100_000)}],
        np.arange(10),
        np.zeros((500, 500)),
        "text" * 50_000,
        list(range(50_000)),
        {"deep": [{"er": (1, 2.5, None, b"bytes")}]},
    ],
    ids=["small", "large", "nest", "array", "matrix", "text", "list", "dict"],
)
def test_values_go_and_come_back(a: Agent, value: Any) -> None:
    there = a.rpc_sync("b", echo, (value,))
    assert repr(there) == repr(value)


def test_a_tensor_of_many_megabytes_and_its_memory_again(a: Agent) -> None:
    tensor = torch.arange(4 << 20)
    for _ in range(3):
        there = a.rpc_sync("b", echo, (tensor,))
        assert torch.equal(there, tensor)
        there.fill_(0)


def test_a_thousand_calls_under_way(a: Agent) -> None:
    futures = [a.rpc_async("b", add, (n, n)) for n in range(1000)]
    assert [future.wait() for future in futures] == [2 * n for n in range(1000)]
    futures = [a.rpc_async("b", echo, (torch.full((5000,), n),)) for n in range(100)]
    assert [int(future.wait()[-1]) for future in futures] == list(range(100))


def test_every_worker_calls_every_other_from_many_threads(cluster: LocalCluster) -> None:
    wrong: list[Any] = []

    def calls(here: str, seed: int) -> None:
        agent = cluster.agent(here)
        for n in range(60):
            there = "abc"[(seed + n) % 3]
            size = (3, 5000, 100_000)[n % 3] if n % 10 == 0 else 3
            value = torch.full((size,), seed * 1000 + n)
            if n % 3 == 0:
                received = agent.rpc_async(there, echo, (value,)).wait()
            else:
                received = agent.rpc_sync(there, echo, (value,))
            if not torch.equal(received, value):
                wrong.append((here, there, n))

    threads = [threading.Thread(target=calls, args=("abc"[n % 3], n)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
        assert not thread.is_alive()
    assert not wrong


# Errors.


@pytest.mark.parametrize(("kind", "type_"), [("key", KeyError), ("value", ValueError), ("custom", Custom)])
@pytest.mark.parametrize("how", ["sync", "async", "remote", "self"])
def test_an_exception_comes_back_as_its_own_type(
    a: Agent, kind: str, type_: type[Exception], how: str
) -> None:
    with pytest.raises(type_) as raised:
        if how == "sync":
            a.rpc_sync("b", fail, (kind,))
        elif how == "async":
            a.rpc_async("b", fail, (kind,)).wait()
        elif how == "remote":
            a.remote("b", fail, (kind,)).to_here()
        else:
            a.rpc_sync("a", fail, (kind,))
    text = str(raised.value)
    assert f"On WorkerInfo(id={cluster_of_test['a' if how == 'self' else 'b'].me.id}, name=" in text
    assert "why" in text
    assert "in fail" in text


def test_a_callee_that_exits_does_not(a: Agent) -> None:
    with pytest.raises(RuntimeError, match="SystemExit"):
        a.rpc_sync("b", fail, ("exit",))
    assert a.rpc_sync("b", echo, (1,)) == 1


def test_an_exception_that_cannot_be_rebuilt_says_so(a: Agent) -> None:
    def raises_local() -> None:
        class Local(Exception):
            pass

        raise Local("why")

    with pytest.raises(RuntimeError, match=r"On WorkerInfo.*(?s:.*)which cannot be rebuilt by the caller"):
        a.rpc_sync("b", raises_local)


def test_an_exception_through_many_workers_stays_readable(a: Agent) -> None:
    with pytest.raises(KeyError) as raised:
        a.rpc_sync("b", fail_at, (100, ("b", "a")), timeout=100)
    text = raised.value.args[0]
    assert text.startswith("On WorkerInfo(")
    assert text.count("at the bottom") <= 3
    assert text.count("passed on by") == 100


def test_what_cannot_be_pickled_fails_at_the_caller_and_sends_nothing(
    cluster: LocalCluster, a: Agent
) -> None:
    a.rpc_sync("b", echo, (1,))
    served = cluster.agent("b").invocation.served
    for call in (a.rpc_sync, a.rpc_async, a.remote):
        with pytest.raises(SerializationError, match="cannot be sent"):
            call("b", echo, (threading.Lock(),))
        with pytest.raises(SerializationError, match="cannot be sent"):
            call("b", echo, (), {"x": threading.Lock()})
        with pytest.raises(SerializationError, match="expected a function to call, got int"):
            call("b", 5)
    assert a.rpc_sync("b", echo, (2,)) == 2
    assert cluster.agent("b").invocation.served == served + 1
    until(lambda: a.stats()["pending"] == 0)  # `remote` tells "b" that its reference is not used


def test_a_result_that_cannot_be_pickled_is_the_callers_error(a: Agent) -> None:
    for call in (lambda: a.rpc_sync("b", threading.Lock), lambda: a.remote("b", threading.Lock).to_here()):
        with pytest.raises(SerializationError, match=r"On WorkerInfo(?s:.*)cannot be sent"):
            call()


def test_a_function_that_the_callee_cannot_import(a: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None: ...

    gone.__qualname__ = gone.__name__ = "gone"
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))
    globals()["gone"] = gone
    gone.__module__ = __name__
    future = None
    try:
        number = a._link("b")._define(gone)
        assert number
        del globals()["gone"]
        with pytest.raises(AttributeError, match="importable"):
            future = a.rpc_sync("b", gone)
    finally:
        globals().pop("gone", None)
    assert future is None


def test_wrong_arguments_are_the_callees_type_error(a: Agent) -> None:
    with pytest.raises(TypeError, match=r"On WorkerInfo(?s:.*)unexpected keyword argument 'nonsense'"):
        a.rpc_sync("b", add, (1,), {"nonsense": 2})


def test_an_unknown_worker(a: Agent) -> None:
    for call in (a.rpc_sync, a.rpc_async, a.remote):
        for target in ("nobody", 12345, WorkerInfo("nobody", 3)):
            with pytest.raises(UnknownWorkerError, match=r"no worker .*; there are: a, b, c"):
                call(target, echo)


def test_before_start_and_after_close(cluster: LocalCluster, a: Agent) -> None:
    early = Agent(name="z", group="g", secret=b"s", transport=MemoryTransport(), host="z")
    for agent in (early, a):
        if agent is a:
            a.rpc_sync("b", echo)
            a.close()
        for call in (agent.rpc_sync, agent.rpc_async, agent.remote):
            for target in ("b", "a"):
                with pytest.raises(NotInitializedError, match="call init_rpc first"):
                    call(target, echo)
    early.close()
    early.close()


# Timeouts.


@pytest.mark.parametrize("how", ["sync", "async", "unawaited", "callback", "follower"])
def test_a_call_that_takes_too_long(cluster: LocalCluster, a: Agent, how: str) -> None:
    gates["g"] = Future()
    if how == "sync":
        with pytest.raises(CallTimeoutError) as raised:
            a.rpc_sync("b", when_opened, ("g",), timeout=0.05)
        error: BaseException = raised.value
    elif how == "follower":
        leader = threading.Thread(target=a.rpc_sync, args=("b", when_opened, ("g",)))
        leader.start()
        until(lambda: a._link("b").channel.read_lock.locked())
        with pytest.raises(CallTimeoutError) as raised:
            a.rpc_sync("b", when_opened, ("g",), timeout=0.05)
        error = raised.value
        gates["g"].set_result(1)
        leader.join()
    else:
        future = a.rpc_async("b", when_opened, ("g",), timeout=0.05)
        if how == "callback":
            fired = threading.Event()
            future.add_done_callback(lambda done: fired.set())
            assert fired.wait(PATIENCE)
        elif how == "unawaited":
            until(future.done)
        with pytest.raises(CallTimeoutError) as raised:
            future.wait()
        error = raised.value
    assert str(error).startswith("RPC ran for more than set timeout (50 ms)")
    assert isinstance(error, TimeoutError)
    assert isinstance(error, RuntimeError)
    assert a.rpc_sync("b", echo, (1,)) == 1
    if not gates["g"].done():
        gates["g"].set_result(1)


def test_an_answer_after_the_timeout_is_dropped(a: Agent) -> None:
    gates["g"] = Future()
    future = a.rpc_async("b", when_opened, ("g",), timeout=0.02)
    with pytest.raises(CallTimeoutError):
        future.wait()
    gates["g"].set_result("late")
    for n in range(20):
        assert a.rpc_sync("b", echo, (n,)) == n
    with pytest.raises(CallTimeoutError):
        future.wait()


def test_the_default_timeout_none_and_minus_one() -> None:
    gates.clear()
    gates["g"] = Future()
    with LocalCluster("ab", options=AgentOptions(rpc_timeout=0.05)) as cluster:
        a = cluster.agent("a")
        for kwargs in ({}, {"timeout": -1}):
            with pytest.raises(CallTimeoutError, match=r"\(50 ms\)"):
                a.rpc_sync("b", when_opened, ("g",), **kwargs)  # type: ignore[arg-type]
        unlimited = a.rpc_async("b", when_opened, ("g",), timeout=0)
        with pytest.raises(CallTimeoutError):
            a.rpc_sync("b", when_opened, ("g",))
        assert not unlimited.done()
        gates["g"].set_result(1)
        assert unlimited.wait() == 1


def test_many_timeouts_at_once(a: Agent) -> None:
    gates["g"] = Future()
    futures = [a.rpc_async("b", when_opened, ("g",), timeout=0.01 + n * 0.001) for n in range(100)]
    for future in reversed(futures):
        with pytest.raises(CallTimeoutError):
            future.wait()
    assert a.stats()["pending"] == 0
    gates["g"].set_result(1)


def test_what_is_queued_past_its_deadline_is_dropped(cluster: LocalCluster, a: Agent) -> None:
    """The callee knows the caller's deadline: it does not run what nobody waits for any more."""
    b = cluster.agent("b")
    make_slow(a, "b", wait_for)
    limit = occupy_pool(cluster, b)
    late = a.rpc_async("b", wait_for, ("late",), timeout=0.02)
    with pytest.raises(CallTimeoutError):
        late.wait()
    events["late"] = threading.Event()
    events["late"].set()
    limit.set()
    assert a.rpc_sync("b", wait_for, ("late",)) == "late"
    assert runs.count("late") == 1


# Cancellation.


def test_a_call_cancelled_before_it_starts_never_runs(cluster: LocalCluster, a: Agent) -> None:
    b = cluster.agent("b")
    make_slow(a, "b", wait_for)
    limit = occupy_pool(cluster, b)
    events["cancelled"] = threading.Event()
    events["cancelled"].set()
    future = a.rpc_async("b", wait_for, ("cancelled",))
    until(lambda: b.pool.waiting)
    assert future.cancel()
    until(lambda: not any(session.waiting for session in b.connections.sessions()))
    limit.set()
    until(lambda: not b.pool.waiting)
    assert a.rpc_sync("b", echo, (1,)) == 1
    assert "cancelled" not in runs
    until(lambda: b.stats()["in_flight"] == 0)


def test_a_call_cancelled_after_it_started_runs_on(cluster: LocalCluster, a: Agent) -> None:
    events["g"] = threading.Event()
    future = a.rpc_async("b", wait_for, ("g",))
    until(lambda: "g" in runs)
    assert future.cancel()
    events["g"].set()
    until(lambda: cluster.agent("b").stats()["in_flight"] == 0)
    assert runs.count("g") == 1


def make_slow(agent: Agent, to: str, function: Any) -> None:
    """Have the callee find out that `function` lasts, so that it runs in the pool."""
    events["slow"] = threading.Event()
    future = agent.rpc_async(to, function, ("slow",))
    b = cluster_of_test.agent(to)
    until(lambda: any(f.slow for s in b.connections.sessions() for f in s.functions.values()))
    events["slow"].set()
    future.wait()


def occupy_pool(cluster: LocalCluster, agent: Agent) -> threading.Event:
    """Keep all of an agent's threads busy, with no more to come, until the event is set."""
    gate = threading.Event()
    from rpcgroup.agent import pool as pool_module

    entered = threading.Semaphore(0)

    def busy() -> None:
        entered.release()
        gate.wait(PATIENCE)

    agent.pool.grow = lambda: None  # type: ignore[method-assign]
    for _ in range(pool_module.BASE_THREADS):
        agent.pool.submit(busy)
    for _ in range(pool_module.BASE_THREADS):
        assert entered.acquire(timeout=PATIENCE)

    def release() -> None:
        gate.set()

    gate_set, gate.set = gate.set, release  # type: ignore[method-assign]
    gate.set = lambda: (agent.pool.__dict__.pop("grow", None), gate_set())  # type: ignore[method-assign,func-returns-value]
    return gate


# async_execution, nesting, waiting.


def test_an_asynchronous_function_answers_when_its_future_does(a: Agent) -> None:
    for _ in range(50):
        gates["g"] = Future()
        future = a.rpc_async("b", when_opened, ("g",))
        gates["g"].set_result("opened")
        assert future.wait() == "opened"
    gates["g"] = Future()
    reference = a.remote("b", when_opened, ("g",))
    gates["g"].set_result(torch.ones(3))
    assert torch.equal(reference.to_here(), torch.ones(3))


def test_an_asynchronous_function_that_fails(a: Agent) -> None:
    gates["g"] = Future()
    future = a.rpc_async("b", when_opened, ("g",))
    gates["g"].set_exception(KeyError("why"))
    with pytest.raises(KeyError, match="On WorkerInfo"):
        future.wait()
    with pytest.raises(ValueError, match="too early"):
        a.rpc_sync("b", fails_before_its_future)
    with pytest.raises(RuntimeError, match=r"must return a torch\.futures\.Future"):
        a.rpc_sync("b", not_a_future)
    with pytest.raises(RuntimeError, match=r"must return a torch\.futures\.Future"):
        a.remote("b", not_a_future).to_here()


def test_an_asynchronous_function_may_return_torchs_own_future(a: Agent) -> None:
    def make() -> Any:
        future: torch.futures.Future[int] = torch.futures.Future()
        future.set_result(5)
        return future

    assert a.rpc_sync("b", async_execution(make)) == 5


def test_nested_calls_of_depth_1000(a: Agent) -> None:
    assert a.rpc_sync("b", back_and_forth, (1000, ("b", "a")), timeout=100) == 1000


def test_many_nested_calls_at_once(a: Agent) -> None:
    futures = [a.rpc_async("b", back_and_forth, (20, ("b", "a")), timeout=100) for _ in range(30)]
    assert [future.wait() for future in futures] == [20] * 30


def test_a_callee_that_waits_for_a_later_call(a: Agent) -> None:
    """The reactor's thread is inside the first call; another one has to run the second."""
    for n in range(20):
        events["g"] = threading.Event()
        first = a.rpc_async("b", wait_for, ("g",))
        a.rpc_sync("b", set_event, ("g",))
        assert first.wait() == "g", n


def test_hundreds_of_callees_that_wait_for_a_later_call(a: Agent) -> None:
    events["g"] = threading.Event()
    waiting = [a.rpc_async("b", wait_for, ("g",)) for _ in range(300)]
    until(lambda: runs.count("g") == 300)
    a.rpc_sync("b", set_event, ("g",))
    assert [future.wait() for future in waiting] == ["g"] * 300


def test_ten_thousand_callees_that_wait_occupy_no_thread(cluster: LocalCluster, a: Agent) -> None:
    gates["g"] = Future()
    before = threading.active_count()
    waiting = [a.rpc_async("b", when_opened, ("g",)) for _ in range(10_000)]
    until(lambda: cluster.agent("b").stats()["in_flight"] == 10_000)
    assert threading.active_count() < before + 100
    assert a.rpc_sync("b", echo, (1,)) == 1
    gates["g"].set_result(7)
    assert [future.wait() for future in waiting] == [7] * 10_000


def test_a_fetch_of_a_value_that_is_not_there_yet_occupies_no_thread(a: Agent) -> None:
    events["g"] = threading.Event()
    reference = a.remote("b", wait_for, ("g",))
    before = threading.active_count()
    fetched: list[str] = []
    fetches = [threading.Thread(target=lambda: fetched.append(reference.to_here())) for _ in range(50)]
    for thread in fetches:
        thread.start()
    a.rpc_sync("b", set_event, ("g",))
    for thread in fetches:
        thread.join(PATIENCE)
    assert fetched == ["g"] * 50
    assert threading.active_count() < before + 40


def test_an_argument_whose_unpickling_calls_its_sender(a: Agent) -> None:
    for n in range(20):
        assert a.rpc_sync("b", echo, (CallsWhenUnpickled("b", "a", n),)) == n + 1


def test_a_result_whose_unpickling_calls_its_sender(a: Agent) -> None:
    for n in range(20):
        assert a.rpc_sync("b", make_calls_when_unpickled, ("a", "b", n)) == n + 1
        assert (
            a.rpc_async("b", make_calls_when_unpickled, ("a", "b", n)).then(lambda f: f.wait()).wait()
            == n + 1
        )


def test_callbacks_between_two_workers(a: Agent) -> None:
    futures = [a.rpc_async("b", call_back, ("a", "b", n)) for n in range(200)]
    assert [future.wait() for future in futures] == [n + 1 for n in range(200)]


def test_idle_agents_of_a_group_do_not_wake(cluster: LocalCluster, a: Agent) -> None:
    a.rpc_sync("b", echo)
    until(lambda: all(cluster.agent(name).monitor.cold for name in "abc"))


def test_a_call_after_a_silence(cluster: LocalCluster, a: Agent) -> None:
    for n in range(5):
        until(lambda: all(cluster.agent(name).monitor.cold for name in "abc"))
        assert a.rpc_async("b", echo, (n,)).then(lambda done: done.wait()).wait() == n


# The end.


def test_closing_fails_what_is_pending_and_leaves_nothing(cluster: LocalCluster, a: Agent) -> None:
    gates["g"] = Future()
    future = a.rpc_async("b", when_opened, ("g",))

    def wait() -> None:
        with pytest.raises(PeerUnreachableError):
            a.rpc_sync("b", when_opened, ("g",))

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: a.stats()["pending"] == 2)
    a.close()
    with pytest.raises(PeerUnreachableError, match=r"this worker \(a\) was shut down"):
        future.wait()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    kinds = "monitor", "pool", "reactor", "acceptor"
    assert not {t.name for t in threading.enumerate()} & {f"rpcgroup-{kind}-a" for kind in kinds}
    gates["g"].set_result(1)
    a.close()


def test_closing_while_calls_are_being_made(cluster: LocalCluster, a: Agent) -> None:
    stopped: list[BaseException] = []

    def calls() -> None:
        try:
            while True:
                a.rpc_sync("b", echo, (1,))
                a.rpc_async("c", echo, (torch.ones(10_000),)).wait()
        except BaseException as exc:
            stopped.append(exc)

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    a.rpc_sync("b", echo)
    a.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert [e for e in stopped if not isinstance(e, (NotInitializedError, PeerUnreachableError))] == []


def test_a_callee_that_is_closed_while_it_runs_a_call(cluster: LocalCluster, a: Agent) -> None:
    events["g"] = threading.Event()
    future = a.rpc_async("b", wait_for, ("g",))
    until(lambda: "g" in runs)
    closing = threading.Thread(target=cluster.agent("b").close)
    closing.start()
    with pytest.raises(PeerUnreachableError, match="b"):
        future.wait()
    events["g"].set()
    closing.join(PATIENCE)


def test_a_forked_child_has_no_rpc(a: Agent) -> None:
    a.rpc_sync("b", echo, (1,))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        outcome = b""
        try:
            for call in (a.rpc_sync, a.rpc_async, a.remote):
                try:
                    call("b", echo, (1,))
                    outcome += b"called "
                except NotInitializedError:
                    outcome += b"refused "
        finally:
            os.write(write, outcome)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as result:
        assert result.read() == b"refused refused refused "
    os.waitpid(pid, 0)
    assert a.rpc_sync("b", echo, (2,)) == 2, "the parent goes on"


def test_members_come_and_go(cluster: LocalCluster, a: Agent) -> None:
    assert a.rpc_sync("c", echo, (1,)) == 1
    record = cluster["c"].me
    a.remove_member(record, "has left the group")
    for target in ("c", record.id, record):
        with pytest.raises(PeerUnreachableError, match=r"c has left the group, .* s ago"):
            a.rpc_sync(target, echo)
    a.add_member(record)
    for target in ("c", record):
        assert a.rpc_sync(target, echo, (2,)) == 2


def test_a_new_incarnation_takes_the_name(cluster: LocalCluster, a: Agent) -> None:
    gates["g"] = Future()
    pending = a.rpc_async("c", when_opened, ("g",))
    record = cluster["c"].me
    a.add_member(MemberRecord(name="c", id=77, incarnation=record.incarnation + 1000, address=record.address))
    with pytest.raises(PeerUnreachableError, match="c was replaced by its incarnation"):
        pending.wait()
    with pytest.raises(PeerUnreachableError, match="of incarnation"):
        a.rpc_sync("c", echo)
    gates["g"].set_result(1)


def test_stats(cluster: LocalCluster, a: Agent) -> None:
    for _ in range(5):
        a.rpc_sync("b", echo)
    stats = cluster.agent("b").stats()
    assert stats["calls"] == 5
    assert stats["in_flight"] == 0
    assert a.stats()["links"] == 1
    assert stats["sessions"] == 1


def test_a_deadline_in_the_past_is_over_at_once(a: Agent) -> None:
    with pytest.raises(CallTimeoutError):
        a.rpc_sync("b", time.sleep, (0.05,), timeout=1e-9)


def test_one_that_never_served_keeps_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    agent = Agent(name="a", group="g", secret=b"s", transport=TcpTransport(), host="127.0.0.1")
    assert len(os.listdir("/proc/self/fd")) > len(before)
    agent.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
