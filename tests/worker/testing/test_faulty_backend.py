from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed

from rpcgroup import api
from rpcgroup.backend_registry import (
    BackendType,
    construct_rpc_backend_options,
    infer_backend,
    init_backend,
)
from rpcgroup.errors import CallTimeoutError, RRefError
from rpcgroup.options import RpcBackendOptions
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.testing.faulty_backend import FaultyTensorPipeRpcBackendOptions, InjectedFaultError

PATIENCE = 30.0
ran: list[Any] = []


@torch.jit.script
def twice(x: torch.Tensor) -> torch.Tensor:
    return x + x


def note(x: Any = None) -> Any:
    ran.append(x)
    return x


def pass_on(rref: Any) -> Any:
    return rref.to_here()


def until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.005)


@contextmanager
def faulty(names: str = "ab", **faults: Any) -> Iterator[LocalCluster]:
    ran.clear()
    options = FaultyTensorPipeRpcBackendOptions(**faults).agent_options()
    with LocalCluster(names, options=options) as cluster:
        yield cluster


def test_the_backend_is_registered_and_known_by_its_options() -> None:
    backend = BackendType.FAULTY_TENSORPIPE
    options = construct_rpc_backend_options(
        backend,
        num_worker_threads=8,
        messages_to_fail=["RREF_USER_DELETE"],
        messages_to_delay={"PYTHON_CALL": 1.5},
        num_fail_sends=3,
    )
    assert (options.num_worker_threads, options.rpc_timeout, options.num_fail_sends) == (8, 60.0, 3)
    assert options.messages_to_fail == ["RREF_USER_DELETE"]
    assert options.messages_to_delay == {"PYTHON_CALL": 1.5}
    assert infer_backend(options) is backend


def test_a_type_that_does_not_exist_and_options_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="No mapping to rpc::MessageType exists for SMOKE_SIGNAL"):
        FaultyTensorPipeRpcBackendOptions(messages_to_fail=["SMOKE_SIGNAL"])
    with pytest.raises(TypeError, match="must be a `FaultyTensorPipeRpcBackendOptions`"):
        init_backend(
            BackendType.FAULTY_TENSORPIPE,
            store=None,
            name="a",
            rank=0,
            world_size=1,
            rpc_backend_options=RpcBackendOptions(),
        )


def test_a_call_fails_as_often_as_asked_and_is_not_sent() -> None:
    with faulty(messages_to_fail=["PYTHON_CALL"], num_fail_sends=2) as cluster:
        agent = cluster.agent("a")
        with pytest.raises(InjectedFaultError, match="failed intentionally for PYTHON_CALL to b"):
            agent.rpc_sync("b", note, (1,))
        future = agent.rpc_async("b", note, (2,))
        with pytest.raises(InjectedFaultError):
            future.wait()
        assert ran == []
        assert agent.rpc_sync("b", note, (3,)) == 3
        assert cluster.agent("b").rpc_sync("a", torch.add, (1, 2)) == 3  # SCRIPT_CALL is another type


@pytest.mark.parametrize(
    ("kind", "function", "args"),
    [
        ("PYTHON_REMOTE_CALL", note, (1,)),
        ("SCRIPT_REMOTE_CALL", torch.add, (torch.ones(1), torch.ones(1))),
        ("SCRIPT_REMOTE_CALL", twice, (torch.ones(1),)),
    ],
)
@pytest.mark.parametrize("to", ["a", "b"])
def test_a_creation_fails_and_every_use_says_so(kind: str, function: Any, args: Any, to: str) -> None:
    with faulty(messages_to_fail=[kind], num_fail_sends=1) as cluster:
        agent = cluster.agent("a")
        rref = agent.remote(to, function, args)
        with pytest.raises(InjectedFaultError):
            rref._get_future().wait()
        until(lambda: agent.references.counts().pending_users == 0)
        with pytest.raises(RRefError, match=r"RRef creation .* failed intentionally"):
            rref.to_here()
        with pytest.raises(RRefError, match="RRef creation"):
            agent.rpc_sync("b", pass_on, (rref,))


def test_control_messages_that_fail_are_sent_again_and_nobody_notices() -> None:
    kinds = ["RREF_FORK_REQUEST", "RREF_CHILD_ACCEPT", "RREF_USER_DELETE"]
    with faulty("abc", messages_to_fail=kinds, num_fail_sends=3) as cluster:
        rref = cluster.agent("a").remote("b", note, (5,))
        assert cluster.agent("a").rpc_sync("c", pass_on, (rref,)) == 5
        del rref
        until(lambda: cluster.agent("b").references.counts().owner_rrefs == 0)
        assert cluster.agent("b").references.counts().forks == 0


def test_a_delayed_call_times_out_and_arrives_late() -> None:
    with faulty(messages_to_delay={"PYTHON_CALL": 0.2}) as cluster:
        agent = cluster.agent("a")
        with pytest.raises(CallTimeoutError, match="RPC ran for more than set timeout"):
            agent.rpc_sync("b", note, (1,), timeout=0.02)
        with pytest.raises(CallTimeoutError, match="RPC ran for more than set timeout"):
            agent.rpc_async("b", note, (1,), timeout=0.02).wait()
        assert agent.rpc_sync("b", note, (2,)) == 2
        assert agent.rpc_sync("b", note, (3,), timeout=0) == 3
        until(lambda: sorted(ran) == [1, 1, 2, 3])


@pytest.mark.parametrize("to", ["a", "b"])
def test_a_delayed_creation_times_out_and_the_value_is_made_all_the_same(to: str) -> None:
    with faulty(messages_to_delay={"PYTHON_REMOTE_CALL": 0.2}) as cluster:
        agent = cluster.agent("a")
        rref = agent.remote(to, note, (1,), timeout=0.02)
        with pytest.raises(CallTimeoutError):
            rref._get_future().wait()
        until(lambda: agent.references.counts().pending_users == 0)
        with pytest.raises(RRefError, match="RRef creation"):
            rref.to_here()
        if to == "b":
            until(lambda: cluster.agent("b").references.counts().forks == 1)


def test_a_fetch_of_what_a_builtin_made_is_a_type_of_its_own() -> None:
    with faulty(messages_to_delay={"SCRIPT_RREF_FETCH_CALL": 3600.0}) as cluster:
        agent = cluster.agent("a")
        rref = agent.remote("b", torch.add, (torch.ones(1), 1))
        with pytest.raises(CallTimeoutError):
            rref.to_here(timeout=0.02)
        assert agent.remote("b", note, (1,)).to_here() == 1


def test_a_delayed_call_is_cancelled_and_its_arguments_are_those_of_the_call() -> None:
    with faulty(messages_to_delay={"PYTHON_CALL": 0.1}) as cluster:
        agent = cluster.agent("a")
        values = [1]
        future = agent.rpc_async("b", note, (values,))
        values.append(2)
        assert future.wait() == [1]
        assert agent.rpc_async("b", note, (3,)).cancel()


def test_a_delayed_call_within_an_autograd_context_stays_connected() -> None:
    with faulty(messages_to_delay={"SCRIPT_CALL": 0.05}) as cluster:
        agent = cluster.agent("a")
        context = agent.autograd.new_context()
        x = torch.ones(2, requires_grad=True)
        loss = agent.rpc_sync("b", torch.mul, (x, 3)).sum()
        agent.autograd.backward(context.id, [loss], False)
        assert context.gradients()[x].tolist() == [3, 3]
        agent.autograd.release(context.id)


def test_a_group_of_that_backend() -> None:
    group = init_backend(
        BackendType.FAULTY_TENSORPIPE,
        store=torch.distributed.HashStore(),
        name="a",
        rank=0,
        world_size=1,
        rpc_backend_options=FaultyTensorPipeRpcBackendOptions(
            messages_to_fail=["PYTHON_CALL"], num_fail_sends=1
        ),
    )
    try:
        with pytest.raises(InjectedFaultError):
            api.rpc_sync(group.name, note, (1,))
        assert api.rpc_sync(group.name, note, (1,)) == 1
    finally:
        api.shutdown()
