from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from rpcgroup.agent.agent import Agent
from rpcgroup.agent.call import Call
from rpcgroup.agent.options import AgentOptions
from rpcgroup.agent.peer import Peer
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.autograd.messages import Head
from rpcgroup.errors import PeerUnreachableError
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.group import Group
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.store.client import StoreClient
from rpcgroup.membership.store.dynamic import DynamicRendezvous
from rpcgroup.rref.rref import RRef
from rpcgroup.testing.cluster import LocalCluster
from rpcgroup.transport.memory import MemoryTransport
from rpcgroup.wire.messages import MessageType
from tests.worker.autograd.programs import (
    DEPTH,
    Step,
    hook_leaves,
    random_leaves,
    random_program,
    run_program,
)

EXAMPLES = int(os.environ.get("RPCGROUP_AUTOGRAD_GRAPHS", "30"))
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

PATIENCE = 30.0
NEVER = 3600.0

cluster: LocalCluster
leaves_of: dict[str, list[torch.Tensor]] = {}


def run_at(name: str, program: Sequence[Step], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """As the worker of that name."""

    def call(how: str, step: Step, given: list[torch.Tensor]) -> list[torch.Tensor]:
        agent, args = cluster.agent(name), (step.to, step.program, given)
        if how == "sync":
            return agent.rpc_sync(step.to, run_at, args)
        if how == "async":
            return agent.rpc_async(step.to, run_at, args).wait()
        rref = agent.remote(step.to, run_at, args)
        if how == "handed on":
            return agent.rpc_sync(step.to, take, (rref,))
        return rref.to_here()

    return run_program(program, tensors, leaves_of[name], call)


def take(rref: RRef[list[torch.Tensor]]) -> list[torch.Tensor]:
    """At the owner of the reference."""
    return [tensor * 1 for tensor in rref.local_value()]


def run_here(
    name: str, program: Sequence[Step], tensors: list[torch.Tensor], leaves: dict[str, list[torch.Tensor]]
) -> list[torch.Tensor]:
    """The same in this process."""

    def call(how: str, step: Step, given: list[torch.Tensor]) -> list[torch.Tensor]:
        passed = {id(t): t.clone() for t in given}
        results = run_here(step.to, step.program, [passed[id(t)] for t in given], leaves)
        return [result.clone() for result in results]

    return run_program(program, tensors, leaves[name], call)


def copy_of(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def assert_close(mine: Any, expected: Any, dtype: torch.dtype) -> None:
    if expected is None:
        assert mine is None or not mine.any()
        return
    if mine is None:
        assert not expected.any()
        return
    torch.testing.assert_close(mine, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@contextmanager
def context_at(name: str) -> Iterator[DistAutogradContext]:
    autograd = cluster.agent(name).autograd
    context = autograd.new_context()
    try:
        yield context
    finally:
        autograd.release(context.id)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def contexts(*names: str) -> list[int]:
    return [int(cluster.agent(name).autograd.debug_info()["num_autograd_contexts"]) for name in names]


@pytest.fixture
def group() -> Iterator[LocalCluster]:
    global cluster
    with LocalCluster("abc", options=AgentOptions(suspicion=0.5)) as cluster:
        yield cluster


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


# What is called at other workers.
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def pass_on(x: torch.Tensor, *to: str) -> torch.Tensor:
    """Through all of these workers and back, doubled by the last."""
    me, rest = to[0], to[1:]
    return cluster.agent(me).rpc_sync(rest[0], pass_on, (x, *rest)) if rest else double(x)


def current_id(name: str) -> int:
    return cluster.agent(name).autograd.current_context().id


@async_execution
def later(x: torch.Tensor, name: str) -> Future[torch.Tensor]:
    return cluster.agent(name).rpc_async("c", double, (x,)).then(lambda done: done.wait() + 1)


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise ValueError("it breaks")


def break_later(x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = Breaks.apply(x)
    return result


held = threading.Event()
let_go = threading.Event()


class Holds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        held.set()
        assert let_go.wait(PATIENCE)
        return grads[0]


def hold_later(x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = Holds.apply(x)
    return result


def test_gradients_go_to_the_context_and_not_to_grad(group: LocalCluster) -> None:
    x, y = leaf(1, 2), leaf(3, 4)
    a = group.agent("a")
    with context_at("a") as context:
        product = a.rpc_sync("b", torch.mul, (x, y))
        assert context._known_worker_ids() == {group["b"].me.id}
        a.autograd.backward(context.id, [product.sum()], False)
        grads = context.gradients()
    assert grads == {x: grads[x], y: grads[y]}
    assert grads[x].tolist() == [3, 4] and grads[y].tolist() == [1, 2]
    assert x.grad is None and y.grad is None


def test_a_call_without_a_context_sends_leaves(group: LocalCluster) -> None:
    result = group.agent("a").rpc_sync("b", double, (leaf(1),))
    assert result.is_leaf and result.requires_grad


@pytest.mark.parametrize("how", ["sync", "async", "remote", "method"])
def test_every_kind_of_call(group: LocalCluster, how: str) -> None:
    x = leaf(1, 2)
    a = group.agent("a")
    with context_at("a") as context:
        if how == "sync":
            result = a.rpc_sync("b", double, kwargs={"x": x})
        elif how == "async":
            result = a.rpc_async("b", later, (x, "b")).wait()
        elif how == "remote":
            result = a.remote("b", later, (x, "b")).to_here()
        else:
            result = a.remote("b", double, (x,)).rpc_sync().mul(2)
        a.autograd.backward(context.id, [result.sum()], False)
        assert context.gradients()[x].tolist() == [4 if how == "method" else 2] * 2


def test_nested_tensors_and_what_needs_no_gradient(group: LocalCluster) -> None:
    x, plain = leaf(1, 2), torch.ones(2)
    a = group.agent("a")
    with context_at("a") as context:
        got = a.rpc_sync("b", echo, ({"x": [x, plain, x], "n": 3},))
        assert got["x"][0] is got["x"][2] and got["n"] == 3
        assert not got["x"][1].requires_grad
        a.autograd.backward(context.id, [(got["x"][0] * got["x"][1]).sum()], False)
        assert list(context.gradients()) == [x]


def fail(x: torch.Tensor) -> None:
    raise ValueError("not here")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_call_that_failed_is_no_part_of_the_graph(group: LocalCluster, how: str) -> None:
    """A program that has caught the error and calls somebody else waits for no gradient of the failed call."""
    x = leaf(1, 2)
    a = group.agent("a")
    with context_at("a") as context:
        with pytest.raises(ValueError, match="not here"):
            if how == "sync":
                a.rpc_sync("b", fail, (x,))
            else:
                a.rpc_async("b", fail, (x,)).wait()
        a.autograd.backward(context.id, [a.rpc_sync("c", double, (x,)).sum()], False)
        assert context.gradients()[x].tolist() == [2, 2]


def test_a_call_that_was_never_sent_is_no_part_of_the_graph(group: LocalCluster) -> None:
    link, x = group.agent("a")._link("b"), leaf(1.0)
    link.fail(PeerUnreachableError("lost"))
    with context_at("a") as context:
        with pytest.raises(PeerUnreachableError):
            link.call(MessageType.PYTHON_CALL, double, (x,), None, PATIENCE, Call(), context)
        assert not context.sends


@torch.jit.script
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


def test_an_operator_takes_a_parameter_as_the_tensor_that_it_is(group: LocalCluster) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    a = group.agent("a")
    with context_at("a") as context:
        products = [a.rpc_sync("b", f, (weight, 3.0)) for f in (torch.mul, torch.ops.aten.mul)]
        products.append(a.rpc_sync("b", thrice, (weight,)))
        products.append(a.rpc_sync("b", torch.mul, kwargs={"input": weight, "other": 3.0}))
        products.append(a.remote("b", torch.mul, (weight, 3.0)).to_here())
        stacked = a.rpc_sync("b", torch.stack, ([weight, weight],))
        a.autograd.backward(context.id, [sum(products).sum() + stacked.sum()], False)
        assert context.gradients()[weight].tolist() == [17, 17]
        copy = a.rpc_sync("b", echo, (weight,))
        assert isinstance(copy, torch.nn.Parameter) and copy.is_leaf


def echo(value: Any) -> Any:
    return value


def test_large_sparse_and_complex_tensors(group: LocalCluster) -> None:
    large = torch.ones(300, 100, requires_grad=True)
    sparse = torch.eye(3).to_sparse().requires_grad_()
    z = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    a = group.agent("a")
    with context_at("a") as context:
        got = a.rpc_sync("b", echo, ([large, sparse, z.conj()],))
        loss = got[0].sum() + torch.sparse.sum(got[1]) + (got[2] * 1j).real.sum()
        a.autograd.backward(context.id, [loss], False)
        grads = context.gradients()
    assert grads[large].sum() == 30000
    assert grads[sparse].to_dense().sum() == 3
    (expected,) = torch.autograd.grad((z.conj() * 1j).real.sum(), z)
    assert torch.equal(grads[z], expected)


def test_a_graph_that_comes_back_to_a_worker(group: LocalCluster) -> None:
    x = leaf(1, 2)
    a = group.agent("a")
    with context_at("a") as context:
        h = x * 3
        far = a.rpc_sync("b", pass_on, (h, "b", "c", "a", "b"))
        a.autograd.backward(context.id, [(far * h).sum()], False)
        assert context.gradients()[x].tolist() == [4 * 9, 8 * 9]


def test_the_function_is_within_the_context_and_its_thread_is_not_afterwards(group: LocalCluster) -> None:
    a = group.agent("a")
    with context_at("a") as context:
        assert a.rpc_sync("b", current_id, ("b",)) == context.id
    with pytest.raises(RuntimeError, match="doesn't have a valid autograd context"):
        a.rpc_sync("b", current_id, ("b",))


def test_backward_again_adds_up(group: LocalCluster) -> None:
    x = leaf(1)
    a = group.agent("a")
    with context_at("a") as context:
        loss = a.rpc_sync("b", pass_on, (x, "b", "c")).sum()
        for _ in range(3):
            a.autograd.backward(context.id, [loss], True)
        assert context.gradients()[x].tolist() == [6]


def test_an_error_far_away_comes_back_and_names_the_worker(group: LocalCluster) -> None:
    x = leaf(1)
    a = group.agent("a")
    b = group["b"].me.id
    with context_at("a") as context:
        broken = a.rpc_sync("c", double, (a.rpc_sync("b", break_later, (x,)),)).sum()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"Error on Node {b}: it breaks"):
                a.autograd.backward(context.id, [broken], True)
        fine = a.rpc_sync("b", double, (x,)).sum()
        assert a.autograd.debug_info()["num_current_backward_passes"] == "0"
        assert fine.requires_grad


def ask_c_for_a_leaf() -> torch.Tensor:
    return cluster.agent("b").rpc_sync("c", leaf, (2.0,))


def test_an_outcome_that_could_not_be_told_is_told_again(
    group: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, to_a = group.agent("a"), group.agent("c").peer("a")
    attempts: list[int] = []

    def link() -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise PeerUnreachableError("a is out of reach for a moment")
        return Peer.link(to_a)

    with context_at("a") as context:
        loss = a.rpc_sync("b", ask_c_for_a_leaf).sum()
        monkeypatch.setattr(to_a, "link", link)
        a.autograd.backward(context.id, [loss], False)
    assert len(attempts) >= 2


def test_gradients_that_cannot_be_read_end_the_pass(
    group: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*args: Any) -> Any:
        raise ValueError("garbled")

    a, codec = group.agent("a"), group.agent("b").invocation._codec
    with context_at("a") as context:
        loss = a.rpc_sync("b", double, (leaf(1),)).sum()
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="garbled"):
            patch.setattr(codec, "decode", decode)
            a.autograd.backward(context.id, [loss], False)


def test_gradients_of_a_pass_that_is_over_are_not_sent_any_more(
    group: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = group.agent("a"), group["b"].me.incarnation
    port = a.autograd.port
    head, lost, later = Head(1, 2, pass_id=3, origin=4), print, []
    with monkeypatch.context() as patch:
        patch.setattr(a.chores, "submit", later.append)  # it has to connect first
        port.propagate(b, head, [torch.ones(1)], lost, False)
    port.forget(lost)
    for job in later:
        job()
    assert later and not port._watches and not any(link.listeners for link in a.connections.links)


def test_an_error_here(group: LocalCluster) -> None:
    a = group.agent("a")
    with context_at("a") as context:
        loss = break_later(a.rpc_sync("b", double, (leaf(1),))).sum()
        with pytest.raises(RuntimeError, match=f"Error on Node {group['a'].me.id}: it breaks") as caught:
            a.autograd.backward(context.id, [loss], False)
        assert isinstance(caught.value.__cause__, ValueError)


def test_a_worker_that_dies_in_a_pass_ends_it_and_is_named(group: LocalCluster) -> None:
    held.clear()
    let_go.clear()
    a = group.agent("a")
    with context_at("a") as context, ThreadPoolExecutor() as pool:
        loss = a.rpc_sync("b", pass_on, (leaf(1), "b", "c")).sum()
        loss = a.rpc_sync("c", hold_later, (loss,))
        running = pool.submit(a.autograd.backward, context.id, [loss], False)
        assert held.wait(PATIENCE)
        group.evict("c")
        try:
            with pytest.raises(PeerUnreachableError, match=r"^c "):
                running.result(PATIENCE)
        finally:
            let_go.set()
    eventually(lambda: contexts("a", "b") == [0, 0])


def test_a_context_is_released_everywhere(group: LocalCluster) -> None:
    a = group.agent("a")
    with context_at("a") as context:
        a.rpc_sync("b", pass_on, (leaf(1), "b", "c"))
        assert contexts("a", "b", "c") == [1, 1, 1]
    with pytest.raises(RuntimeError, match=f"Could not find autograd context with id: {context.id}"):
        a.autograd.retrieve(context.id)
    eventually(lambda: contexts("a", "b", "c") == [0, 0, 0])


def test_the_contexts_of_a_dead_worker_are_released(group: LocalCluster) -> None:
    a = group.agent("a")
    context = a.autograd.new_context()
    a.rpc_sync("b", pass_on, (leaf(1), "b", "c"))
    assert contexts("b", "c") == [1, 1]
    a.thread.context = None
    group.evict("a")
    eventually(lambda: contexts("b", "c") == [0, 0])
    assert context.released


def test_what_only_a_dead_worker_knew_of_is_released(group: LocalCluster) -> None:
    a = group.agent("a")
    with context_at("a"):
        a.rpc_sync("b", pass_on, (leaf(1), "b", "c"))
        group.evict("b")
        assert contexts("c") == [1]
    eventually(lambda: contexts("c") == [0])


@pytest.fixture
def strangers() -> Iterator[tuple[Agent, Agent]]:
    """Two members, of whom the first hears of the second when it asks for news."""
    store, transport, groups = HashStore(), MemoryTransport(), []
    for name in ("first", "second"):
        options = AgentOptions(rpc_timeout=5)
        agent = Agent(name=name, group="g", secret=b"s", transport=transport, host=name, options=options)
        groups.append(Group(agent, DynamicRendezvous(StoreClient(store), NEVER), NEVER))
        groups[-1].join(MemberRecord(name=name, address=agent.address, state=MemberState.READY))
        groups[-1].serve()
    yield groups[0].agent, groups[1].agent
    for group in groups:
        group.leave(graceful=False)


def test_a_worker_that_has_just_joined_may_call_backward(strangers: tuple[Agent, Agent]) -> None:
    first, second = strangers
    assert first.members.of_incarnation(second.identity.incarnation) is None
    context, x = second.autograd.new_context(), leaf(1.0, 2.0)
    second.autograd.backward(context.id, [second.rpc_sync("first", double, (x,)).sum()], False)
    assert context.gradients()[x].tolist() == [2, 2]
    second.autograd.release(context.id)


def test_a_worker_of_which_only_others_know_is_asked_for(strangers: tuple[Agent, Agent]) -> None:
    first, second = strangers
    context = second.autograd.new_context()
    answers: SimpleQueue[bool | None] = SimpleQueue()
    first.autograd.port.ask(second.identity.incarnation, context.id, answers.put)
    assert answers.get(timeout=PATIENCE) is True
    first.autograd.port.ask(second.identity.incarnation - 100, context.id, answers.put)
    assert answers.get(timeout=PATIENCE) is None
    second.autograd.release(context.id)


def test_a_call_that_outlives_its_context_is_an_ordinary_one(group: LocalCluster) -> None:
    a = group.agent("a")
    gate = threading.Event()
    gates["late"] = gate
    with context_at("a") as context:
        future = a.rpc_async("b", wait_and_double, (leaf(1), "late"))
        eventually(lambda: contexts("b") == [1])
    eventually(lambda: contexts("b") == [0])
    gate.set()
    assert future.wait().tolist() == [2]
    assert contexts("a", "b") == [0, 0] and context.released


gates: dict[str, threading.Event] = {}


def wait_and_double(x: torch.Tensor, gate: str) -> torch.Tensor:
    assert gates[gate].wait(PATIENCE)
    return x * 2


def test_backward_from_a_reference(group: LocalCluster) -> None:
    x = leaf(1, 2)
    a = group.agent("a")
    with context_at("a") as context:
        loss = a.remote("b", torch.sum, (a.rpc_sync("c", double, (x,)),))
        loss.backward(context.id)
        assert context.gradients()[x].tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="require 'dist_autograd_ctx_id'"):
            loss.backward()
        with pytest.raises(RuntimeError, match="should contain a tensor"):
            a.remote("b", echo, ("x",)).backward(context.id)


def test_a_reference_on_its_owner() -> None:
    with LocalCluster("a"):
        x = leaf(1, 2)
        RRef(x.sum()).backward()
        assert x.grad is not None and x.grad.tolist() == [1, 1]


def test_a_tensor_of_another_context(group: LocalCluster) -> None:
    a = group.agent("a")
    with context_at("a"):
        old = a.rpc_sync("b", double, (leaf(1),))
    with context_at("a") as context, pytest.raises(RuntimeError, match="bring it there again"):
        a.autograd.backward(context.id, [old.sum()], False)


def test_gradients_are_those_of_one_process() -> None:
    """`RPCGROUP_AUTOGRAD_GRAPHS` says how many random graphs."""
    global cluster

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.randoms(use_true_random=True), st.integers(2, 5), st.booleans(), st.booleans())
    def compare(random: Any, count: int, double: bool, twice: bool) -> None:
        workers = names[:count]
        dtype = torch.float64 if double else torch.float32
        for name in workers:
            leaves_of[name] = random_leaves(random, dtype)
        copies = {
            name: [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves_of[name]]
            for name in workers
        }
        for name in workers:
            hook_leaves(leaves_of[name])
            hook_leaves(copies[name])
        program = random_program(random, workers, 0, DEPTH)
        expected_loss = run_here("a", program, [], copies)[1]
        autograd = cluster.agent("a").autograd
        context = autograd.new_context()
        try:
            loss = run_at("a", program, [])[1]
            torch.testing.assert_close(loss, expected_loss)
            if not loss.requires_grad:
                return
            for last in [False, True] if twice else [True]:
                autograd.backward(context.id, [loss], not last)
                expected_loss.backward(retain_graph=not last)
            for name in workers:
                known = cluster.agent(name).autograd._contexts.get(context.id)
                grads = known.gradients() if known else {}
                for leaf, copy in zip(leaves_of[name], copies[name], strict=True):
                    assert leaf.grad is None
                    assert_close(grads.get(leaf), copy.grad, dtype)
        finally:
            autograd.release(context.id)

    names = "abcde"
    with LocalCluster(names) as cluster:
        compare()
