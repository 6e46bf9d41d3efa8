from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpcgroup.testing.cluster import LocalCluster
from tests.worker.autograd.programs import (
    Step,
    hook_leaves,
    random_leaves,
    random_program,
    run_program,
)

EXAMPLES = int(os.environ.get("RPCGROUP_AUTOGRAD_GRAPHS", "40"))
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

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
        return agent.remote(step.to, run_at, args).to_here()

    return run_program(program, tensors, leaves_of[name], call)


def run_here(
    name: str, program: Sequence[Step], tensors: list[torch.Tensor], leaves: dict[str, list[torch.Tensor]]
) -> list[torch.Tensor]:
    """The same in this process."""

    def call(how: str, step: Step, given: list[torch.Tensor]) -> list[torch.Tensor]:
        passed = {id(t): t.clone() for t in given}
        results = run_here(step.to, step.program, [passed[id(t)] for t in given], leaves)
        return [result.clone() for result in results]

    return run_program(program, tensors, leaves[name], call)


def assert_close(mine: Any, expected: Any, dtype: torch.dtype) -> None:
    if expected is None:
        assert mine is None or not mine.any()
        return
    if mine is None:
        assert not expected.any()
        return
    torch.testing.assert_close(mine, expected, rtol=TOLERANCE[dtype] * 10, atol=TOLERANCE[dtype])


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
        program = random_program(random, workers, 0, 3)
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
