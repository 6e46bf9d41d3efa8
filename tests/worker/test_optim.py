from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import rpcgroup as rpc
from rpcgroup import autograd, contract
from rpcgroup.optim import DistributedOptimizer

_places = itertools.count()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of this process, which calls itself."""
    monkeypatch.setenv(contract.ENV_SECRET, "secret")
    rpc.init_rpc("w", init_method=f"memory://test-optim-{next(_places)}/default/g")
    yield
    rpc.shutdown(graceful=False)


def parameters() -> list[rpc.RRef[torch.Tensor]]:
    return [
        rpc.RRef(torch.tensor([1.0, 2.0], requires_grad=True)),
        rpc.RRef(torch.tensor([3.0], requires_grad=True)),
    ]


def backward(context_id: int, rrefs: list[rpc.RRef[torch.Tensor]]) -> None:
    loss = rpc.rpc_sync("w", torch.mul, (rrefs[0].local_value(), 3.0)).sum()
    autograd.backward(context_id, [loss])


def test_a_step_takes_the_gradients_of_the_context() -> None:
    rrefs = parameters()
    optimizer = DistributedOptimizer(torch.optim.SGD, rrefs, lr=0.1)
    first, second = (rref.local_value() for rref in rrefs)
    first.grad = torch.tensor([100.0, 100.0])
    with autograd.context() as context_id:
        backward(context_id, rrefs)
        optimizer.step(context_id)
    torch.testing.assert_close(first.detach(), torch.tensor([0.7, 1.7]))
    assert second.tolist() == [3]  # no gradient, no step
    assert first.grad.tolist() == [100, 100] and second.grad is None


def test_positional_arguments_go_to_the_optimizer() -> None:
    rrefs = parameters()
    optimizer = DistributedOptimizer(torch.optim.SGD, rrefs, 1.0)
    with autograd.context() as context_id:
        backward(context_id, rrefs)
        optimizer.step(context_id)
    assert rrefs[0].local_value().tolist() == [-2, -1]


class Breaks(torch.optim.SGD):
    def __init__(self, params: Any, in_step: bool) -> None:
        super().__init__(params, lr=0.1)
        if not in_step:
            raise ValueError("it cannot be made")

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise ValueError("it makes no step")


def test_what_an_optimizer_raises() -> None:
    with pytest.raises(ValueError, match="it cannot be made"):
        DistributedOptimizer(Breaks, parameters(), in_step=False)
    rrefs = parameters()
    optimizer = DistributedOptimizer(Breaks, rrefs, in_step=True)
    with autograd.context() as context_id:
        backward(context_id, rrefs)
        with pytest.raises(ValueError, match="it makes no step"):
            optimizer.step(context_id)
    assert rrefs[0].local_value().grad is None


def test_a_step_without_a_context() -> None:
    optimizer = DistributedOptimizer(torch.optim.SGD, parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="Could not find autograd context with id: 100"):
        optimizer.step(100)
