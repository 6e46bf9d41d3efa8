from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.autograd.profiler_legacy import profile

from rpcgroup.agent import recording
from rpcgroup.agent.profiling import profiling_key
from rpcgroup.errors import CallTimeoutError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.testing.cluster import LocalCluster

PATIENCE = 30.0
agents: dict[str, Any] = {}
gate = threading.Event()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster("abc") as cluster:
        agents.update({name: cluster.agent(name) for name in cluster})
        yield cluster
        agents.clear()


@torch.jit.script
def twice(x: torch.Tensor) -> torch.Tensor:
    return x + x


def work(x: Any = 1) -> Any:
    with torch.autograd.profiler.record_function("##work##"):
        return torch.ones(3).mul(x).relu()


def fail() -> None:
    torch.ones(1)
    raise KeyError("no")


def wait_for_gate() -> None:
    gate.wait(PATIENCE)


def nested(to: str) -> Any:
    return agents["b"].rpc_sync(to, work)


@async_execution
def nested_async(to: str) -> Future[Any]:
    future: Future[Any] = agents["b"].rpc_async(to, work)
    return future


def make(kind: str, to: str, function: Any, args: tuple[Any, ...] = ()) -> Any:
    """A finished call of that kind."""
    agent = agents["a"]
    if kind == "sync":
        return agent.rpc_sync(to, function, args)
    if kind == "async":
        return agent.rpc_async(to, function, args).wait()
    rref = agent.remote(to, function, args)
    rref._get_profiling_future().wait()
    return rref.to_here()


def named(events: Any, part: str) -> Any:
    return [event for event in events if part in event.name]


@pytest.mark.parametrize("kind", ["sync", "async", "remote"])
def test_an_operator_takes_a_parameter_as_the_tensor_that_it_is(cluster: LocalCluster, kind: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    autograd = agents["a"].autograd
    context = autograd.new_context()
    with profile():
        product = make(kind, "b", torch.mul, (weight, 3.0))
    autograd.backward(context.id, [product.sum()], False)
    assert context.gradients()[weight].tolist() == [3, 3]
    autograd.release(context.id)


def test_the_key_of_a_call() -> None:
    assert profiling_key("sync", torch.add, "a", "b") == "rpc_sync#aten::add(a -> b)"
    assert profiling_key("sync", torch.ops.aten.add, "a", "b") == "rpc_sync#aten::add(a -> b)"
    assert profiling_key("async", work, "a", "b") == "rpc_async#work(a -> b)"
    assert profiling_key("remote", twice, "a", "b").endswith(".twice(a -> b)")
    assert profiling_key("remote", object(), "a", "b") == "rpc_remote#object(a -> b)"


@pytest.mark.parametrize("to", ["a", "b"])
@pytest.mark.parametrize("kind", ["sync", "async", "remote"])
def test_a_call_is_an_event_and_so_is_what_ran_for_it(cluster: LocalCluster, kind: str, to: str) -> None:
    with profile() as profiled:
        result = make(kind, to, work, (2,))
    assert result.tolist() == [2, 2, 2]
    events = profiled.function_events
    key = f"rpc_{kind}#work(a -> {to})"
    (call,) = [event for event in events if event.name == key]
    me, callee = cluster.agent("a").info.id, cluster.agent(to).info.id
    assert (call.node_id, call.is_remote, call.count) == (me, False, 1)
    remote = [event for event in events if event.is_remote]
    assert all(event.name.startswith(key + "#remote_op: ") and event.node_id == callee for event in remote)
    names = {event.name.removeprefix(key + "#remote_op: ") for event in remote}
    assert {"##work##", "aten::ones", "aten::mul", "aten::relu"} <= names
    assert events.index(call) < min(events.index(event) for event in remote)
    (block,) = named(remote, "##work##")
    assert named(block.cpu_children, "aten::mul")
    for event in remote:
        assert call.time_range.start <= event.time_range.start <= event.time_range.end <= call.time_range.end


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [(torch.mul, (torch.ones(2), 3), "aten::mul"), (twice, (torch.ones(2),), "twice")],
)
@pytest.mark.parametrize("kind", ["sync", "async", "remote"])
def test_operators_and_scripted_functions(
    cluster: LocalCluster, kind: str, function: Any, args: Any, name: str
) -> None:
    with profile() as profiled:
        make(kind, "b", function, args)
    (call,) = [event for event in profiled.function_events if not event.is_remote and "rpc_" in event.name]
    assert name in call.name and call.name.startswith(f"rpc_{kind}#")
    assert named(profiled.function_events, "#remote_op: aten::")


def test_a_reference_that_is_there_at_once_is_one_event(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents["a"]
    remote = agent.remote

    def remote_and_wait(*args: Any) -> Any:
        rref = remote(*args)
        rref._get_future().wait()
        return rref

    monkeypatch.setattr(agent, "remote", remote_and_wait)
    with profile() as profiled:
        make("remote", "b", work)
    (call,) = [event for event in profiled.function_events if not event.is_remote and "rpc_" in event.name]
    assert call.name == "rpc_remote#work(a -> b)"


@pytest.mark.parametrize("function", [nested, nested_async])
def test_calls_of_the_callee_are_in_its_events(cluster: LocalCluster, function: Any) -> None:
    with profile() as profiled:
        make("async", "b", function, ("c",))
    kind = "sync" if function is nested else "async"
    outer, inner = f"rpc_async#{function.__name__}(a -> b)", f"rpc_{kind}#work(b -> c)"
    (call,) = [e for e in profiled.function_events if e.name == f"{outer}#remote_op: {inner}"]
    assert call.node_id == cluster.agent("b").info.id
    (mul,) = [
        e for e in profiled.function_events if e.name == f"{outer}#remote_op: {inner}#remote_op: aten::mul"
    ]
    assert mul.node_id == cluster.agent("c").info.id


def test_the_callee_records_as_much_as_the_caller(cluster: LocalCluster) -> None:
    with profile(record_shapes=True, profile_memory=True) as profiled:
        make("sync", "b", torch.add, (torch.ones(100), torch.ones(100)))
    (add,) = named(profiled.function_events, "#remote_op: aten::add")
    assert add.input_shapes[:2] == [[100], [100]]
    assert add.cpu_memory_usage > 0
    with profile() as profiled:
        make("sync", "b", torch.add, (torch.ones(100), torch.ones(100)))
    assert {event.cpu_memory_usage for event in profiled.function_events} == {0}


def test_a_block_of_the_caller_holds_its_calls(cluster: LocalCluster) -> None:
    with profile() as profiled, torch.autograd.profiler.record_function("block"):
        make("async", "b", work)
    (block,) = named(profiled.function_events, "block")
    (call,) = [e for e in profiled.function_events if e.name == "rpc_async#work(a -> b)"]
    assert block.time_range.start <= call.time_range.start
    assert call.time_range.end <= block.time_range.end


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_errors_are_those_of_the_call(cluster: LocalCluster, kind: str) -> None:
    with profile() as profiled:
        with pytest.raises(KeyError, match="no"):
            make(kind, "b", fail)
        with pytest.raises(TypeError):
            make(kind, "b", threading.Lock())
    assert len(named(profiled.function_events, "fail(a -> b)")) == 1


def test_a_creation_that_raises_or_times_out(cluster: LocalCluster) -> None:
    agent = cluster.agent("a")
    with profile() as profiled:
        rref = agent.remote("b", fail)
        rref._get_profiling_future().wait()
        with pytest.raises(KeyError):
            rref.to_here()
        late = agent.remote("b", wait_for_gate, timeout=0.05)
        late._get_profiling_future().wait()
        gate.set()
    assert len(named(profiled.function_events, "fail(a -> b)")) == 1
    with pytest.raises(CallTimeoutError):
        late._get_future().wait()


def test_each_thread_has_its_own_profile(cluster: LocalCluster) -> None:
    profiles: dict[str, Any] = {}

    def run(to: str) -> None:
        with profile() as profiled:
            make("async", to, work)
        profiles[to] = profiled

    threads = [threading.Thread(target=run, args=(to,)) for to in "bc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for to, profiled in profiles.items():
        assert {e.name.split("#remote_op: ")[0] for e in profiled.function_events if e.is_remote} == {
            f"rpc_async#work(a -> {to})"
        }


def test_without_a_legacy_profile_a_call_is_a_plain_one(cluster: LocalCluster) -> None:
    with torch.profiler.profile() as profiled:
        make("sync", "b", work)
    assert not named(profiled.events(), "rpc_")
    with profile(enabled=False):
        assert not recording.recordings
        make("sync", "b", work)
    rref = cluster.agent("a").remote("b", work)
    with pytest.raises(RuntimeError, match="not made by remote"):
        rref._get_profiling_future()


def test_torchs_names_are_torchs_again_once_no_agent_is_left() -> None:
    from torch.autograd import profiler_legacy

    names = "_disable_profiler_legacy", "_parse_legacy_records"
    before = [getattr(profiler_legacy, name) for name in names]
    with LocalCluster("x"), LocalCluster("y", group="other"):
        assert all(getattr(profiler_legacy, name).__module__ == recording.__name__ for name in names)
    assert [getattr(profiler_legacy, name) for name in names] == before
