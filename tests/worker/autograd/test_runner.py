"""Each stage against what torch's engine does with the whole graph at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from rpcgroup.autograd.functions import RecvInfo, Send, attach_recv, is_recv
from rpcgroup.autograd.graph import LocalGraph
from rpcgroup.autograd.runner import Results, Runner


class Steps:
    """A graph that is run in stages: the gradients of `entries[0]`, then of each of the others."""

    def __init__(self, *entries: Sequence[torch.Tensor], retain_graph: bool = False) -> None:
        self.sends = [Send(1, tensors) for tensors in entries]
        self.graph = LocalGraph(
            [send.next_functions for send in self.sends],
            lambda node: () if is_recv(node) else node.next_functions,
        )
        self.runner = Runner(retain_graph)
        self.leaves: dict[torch.Tensor, torch.Tensor] = {}
        self.received: list[tuple[RecvInfo, list[Any]]] = []

    def step(self, number: int, *grads: torch.Tensor | None) -> Results:
        self.graph.arrive(number)
        self.runner.put(self.sends[number].next_functions, grads)
        results = self.runner.run(self.graph.take())
        for leaf, grad in results.leaves:
            assert leaf not in self.leaves
            self.leaves[leaf] = grad
        self.received += results.received
        return results


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def test_a_shared_subgraph_is_run_once_with_the_sum() -> None:
    x = leaf(1, 2)
    shared = (x * 3).tanh()
    calls: list[torch.Tensor] = []
    shared.register_hook(calls.append)
    loss, sent = (shared * 2).sum(), shared * 5
    steps = Steps([loss], [sent], retain_graph=True)
    assert not steps.step(0, torch.ones(())).leaves
    steps.step(1, torch.tensor([1.0, 10.0]))
    assert [call.tolist() for call in calls] == [[7, 52]]
    (expected,) = torch.autograd.grad(shared, x, torch.tensor([7.0, 52.0]))
    assert torch.equal(steps.leaves[x], expected)


def test_hooks_on_the_way_of_an_early_gradient_run_once_on_the_sum() -> None:
    x = leaf(1.0)
    made = x * 2
    made.register_hook(lambda grad: grad.clamp(max=3))
    early = (made + made) * 1
    early.register_hook(lambda grad: grad * 4)
    steps = Steps([early.sum()], [made])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.tensor([1.0]))
    assert steps.leaves[x].tolist() == [6]  # min(4 + 4 + 1, 3) * 2


def test_several_outputs_and_one_without_a_gradient() -> None:
    x = leaf(1, 2, 3, 4)
    first, second = (x * 1).chunk(2)
    steps = Steps([first.sum()], [second])
    steps.step(0, torch.ones(()))
    steps.step(1, None)
    assert steps.leaves[x].tolist() == [1, 1, 0, 0]


def test_broadcast_and_dtypes() -> None:
    x = leaf(2.0)
    wide = x.expand(3) * torch.ones(2, 3)
    mixed = wide.double() * torch.ones((), dtype=torch.float64)
    inner = x * 1
    steps = Steps([(mixed * inner).sum()], [inner])
    steps.step(0, torch.ones((), dtype=torch.float64))
    steps.step(1, torch.ones(1))
    assert steps.leaves[x].tolist() == [6 * 2 + 6 * 2 + 1]


def test_complex() -> None:
    x = leaf(1, 2)
    z = torch.complex(x, x) * 1
    steps = Steps([(z * x).abs().sum()], [z])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.zeros(2, dtype=torch.complex64))
    y = leaf(1, 2)
    (torch.complex(y, y) * y).abs().sum().backward()
    torch.testing.assert_close(steps.leaves[x], y.grad)


class Custom(torch.autograd.Function):
    """An argument that is none of the graph, two results of which one gets no gradient."""

    @staticmethod
    def forward(ctx: Any, factor: int, x: torch.Tensor, name: str, y: torch.Tensor) -> Any:
        ctx.factor = factor
        return x * factor, y * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        assert all(grad is not None for grad in grads)  # None is made zeros
        return None, grads[0] * ctx.factor, None, grads[1]


def test_a_custom_function_early() -> None:
    x, y, constant = leaf(1.0), leaf(2.0), torch.ones(1)
    inner = y * 1
    a, _ = Custom.apply(3, x, "name", inner)
    steps = Steps([(a * constant).sum()], [inner])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.tensor([5.0]))
    assert steps.leaves[x].tolist() == [3] and steps.leaves[y].tolist() == [5]


def test_hooks_of_an_early_node() -> None:
    x = leaf(1.0)
    inner = x * 1
    outer = inner * 2
    node: Any = outer.grad_fn
    node.register_prehook(lambda grads: (grads[0] * 10,))
    node.register_hook(lambda out, given: (out[0] + given[0], *out[1:]))
    steps = Steps([outer.sum()], [inner])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.tensor([1.0]))
    assert steps.leaves[x].tolist() == [20 + 10 + 1]


def test_hooks_of_a_leafs_node() -> None:
    x = leaf(1.0)
    made = x * 2
    node: Any = made.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    seen: list[Any] = []
    node.register_prehook(lambda grads: (grads[0] + 1,))
    node.register_hook(lambda out, given: seen.append((out, given)))
    steps = Steps([made.sum()])
    steps.step(0, torch.ones(()))
    assert steps.leaves[x].tolist() == [3]
    assert seen[0][0] == () and seen[0][1][0].tolist() == [3]


def test_a_recv_gets_all_its_gradients_at_once() -> None:
    _, (a, b, c) = attach_recv(RecvInfo(1, 2, 3, 3), [torch.ones(2), torch.ones(1), torch.ones(1)])
    steps = Steps([(a * 2).sum()], [b * 3])
    assert not steps.step(0, torch.ones(())).received
    steps.step(1, torch.ones(1))
    ((info, grads),) = steps.received
    assert info.message_id == 2
    assert grads[0].tolist() == [2, 2] and grads[1].tolist() == [3] and grads[2] is None
    assert c.requires_grad


def test_a_recv_that_no_gradient_reaches_is_told_all_the_same() -> None:
    _, (a,) = attach_recv(RecvInfo(1, 2, 3, 1), [torch.ones(2)])
    steps = Steps([], [a * 1])
    steps.step(1, None)
    assert [grads for _, grads in steps.received] == [[None]]


def test_what_is_sent_twice_and_a_leaf_that_is_sent_itself() -> None:
    x = leaf(1.0)
    steps = Steps([(x * 2).sum()], [x], [x])
    steps.step(1, torch.tensor([10.0]))
    steps.step(0, torch.ones(()))
    assert not steps.leaves
    steps.step(2, torch.tensor([100.0]))
    assert steps.leaves[x].tolist() == [112]


def test_the_hook_of_a_leaf_runs_once_on_the_sum() -> None:
    x = leaf(1.0)
    x.register_hook(lambda grad: grad.clamp(max=5))
    steps = Steps([(x * 3).sum()], [x])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.tensor([3.0]))
    assert steps.leaves[x].tolist() == [5]


def test_in_place_operations_and_views() -> None:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made = x * 2
        part = made[:1]
        part.mul_(3)
        made.add_(part.detach().sum())
        part.add_(made[1:])
        return made.sum(), made

    x, y = leaf(1, 2), leaf(1, 2)
    loss, made = run(x)
    steps = Steps([loss], [made])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.ones(2))
    expected, also = run(y)
    (expected + also.sum()).backward()
    assert torch.equal(steps.leaves[x], y.grad)  # type: ignore[arg-type]


def test_sparse_gradients() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    steps = Steps([table(torch.tensor([0, 1])).sum()], [table(torch.tensor([1]))])
    steps.step(0, torch.ones(()))
    steps.step(1, torch.ones(1, 2))
    grad = steps.leaves[table.weight]
    assert grad.is_sparse and grad.to_dense().sum(1).tolist() == [2, 4, 0, 0]


@pytest.mark.parametrize("retain", [True, False])
def test_the_graph_is_retained_or_not(retain: bool) -> None:
    x = leaf(1, 2)
    loss = (x * x).sum()
    Steps([loss], retain_graph=retain).step(0, torch.ones(()))
    again = Steps([loss])
    if retain:
        again.step(0, torch.ones(()))
        assert again.leaves[x].tolist() == [2, 4]
    else:
        with pytest.raises(RuntimeError, match="second time"):
            again.step(0, torch.ones(()))


def test_kept_leaves_are_accumulated_by_torch_and_given_back() -> None:
    x, y = leaf(1.0), leaf(2.0)
    x.grad, y.grad = torch.tensor([7.0]), torch.tensor([8.0])
    _, (received,) = attach_recv(RecvInfo(1, 2, 3, 1), [torch.ones(1)])
    seen: list[Any] = []
    x.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad))
    steps = Steps([(x * y * 3 * received).sum()])
    steps.runner.keep([x])
    steps.step(0, torch.ones(()))
    assert steps.leaves == {y: torch.tensor([3.0])}
    assert [grads[0].tolist() for _, grads in steps.received] == [[6]]
    assert y.grad.tolist() == [8]
    assert [grad.tolist() for grad in seen] == [[6]]
    assert [(leaf is x, grad.tolist()) for leaf, grad in steps.runner.give_back()] == [(True, [6])]
    assert x.grad.tolist() == [7]
    assert not steps.runner.give_back()
