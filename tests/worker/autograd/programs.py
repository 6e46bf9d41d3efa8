"""Random programs over several workers, which one process can run too: what gives the gradients to compare with.

A program is a list of steps over a list of tensors. A step makes new ones: by an operation, from a leaf of the
worker, or by a call that runs a program at another worker. What crosses is copied, in one process by `clone`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import torch

SHAPES = ((2, 3), (3,), (1,), (2, 1))
LEAVES = 3
"""Of each worker."""
DEPTH = 3
"""Of calls within calls."""
OPERATIONS = ("add", "mul", "sub", "tanh", "leaf", "hook", "split", "weird", "cat", "inplace", "view")
KINDS = (*OPERATIONS, *("call",) * 5)


class Step(NamedTuple):
    kind: str
    of: tuple[int, ...] = ()
    """Numbers of the tensors that it uses."""
    number: int = 0
    to: str = ""
    program: tuple[Step, ...] = ()


class Weird(torch.autograd.Function):
    """An argument that is no tensor, one that gets no gradient, and two results."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: int, y: torch.Tensor) -> Any:
        ctx.factor = factor
        return x * factor, torch.sin(x).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.factor + grads[1] * 0.5, None, None


def random_program(random: Random, workers: Sequence[str], given: int, depth: int) -> tuple[Step, ...]:
    """Given so many tensors, whose results are all used in the end."""
    steps: list[Step] = []
    count = given

    def add(step: Step, results: int = 1) -> None:
        nonlocal count
        steps.append(step)
        count += results

    add(Step("leaf", number=random.randrange(LEAVES)))
    kinds = [random.choice(KINDS) for _ in range(random.randint(2, 6))]
    if depth == DEPTH:
        kinds.insert(random.randrange(len(kinds)), "call")
    for kind in kinds:
        one = (random.randrange(count),)
        two = (random.randrange(count), random.randrange(count))
        if kind == "call" and depth:
            passed = tuple(random.randrange(count) for _ in range(random.randint(0, 3)))
            program = random_program(random, workers, len(passed), depth - 1)
            how = random.choice(("sync", "async", "remote", "handed on"))
            add(Step(how, passed, to=random.choice(workers), program=program), RESULTS)
        elif kind in ("add", "mul", "sub", "cat"):
            add(Step(kind, two))
        elif kind in ("tanh", "inplace", "view", "hook"):
            add(Step(kind, one, random.randint(1, 3)))
        elif kind == "split":
            add(Step(kind, one), 2)
        elif kind == "weird":
            add(Step(kind, two, random.randint(1, 3)), 2)
        else:
            add(Step("leaf", number=random.randrange(LEAVES)))
    return tuple(steps)


RESULTS = 2
"""What a program returns: a tensor of the last one's shape, and a scalar, which depend on everything."""
Call = Callable[[str, Step, list[torch.Tensor]], list[torch.Tensor]]


def run_program(
    program: Sequence[Step], tensors: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], call: Call
) -> list[torch.Tensor]:
    """`call(how, step, tensors)` runs the program of a step at another worker."""
    values = list(tensors)
    for step in program:
        values += run_step(step, [values[i] for i in step.of], leaves, call)
    everything = sum(torch.tanh(value.mean()) * (1 + 0.1 * i) for i, value in enumerate(values))
    assert isinstance(everything, torch.Tensor)
    return [values[-1] + 0.5 * everything, everything * 1]


def run_step(
    step: Step, given: list[torch.Tensor], leaves: Sequence[torch.Tensor], call: Call
) -> list[torch.Tensor]:
    kind, number = step.kind, step.number
    if kind in ("sync", "async", "remote", "handed on"):
        return call(kind, step, given)
    if kind == "leaf":
        return [leaves[number]]
    if kind == "add":
        return [given[0] + given[1]]
    if kind == "sub":
        return [given[0] - 0.5 * given[1]]
    if kind == "mul":
        return [torch.tanh(given[0] * given[1])]
    if kind == "tanh":
        return [torch.tanh(given[0] * number)]
    if kind == "cat":
        return [torch.cat([given[0].reshape(-1), given[1].reshape(-1)]).mean().reshape(1)]
    if kind == "view":
        return [given[0].reshape(-1)[:1].expand(2, 3)]
    if kind == "split":
        first, second = torch.cat([given[0].reshape(-1), given[0].reshape(-1) * 2]).chunk(2)
        return [first.sum(), second[-1:]]
    if kind == "inplace":
        made = given[0] * 1
        made.mul_(number)
        return [made]
    if kind == "weird":
        return list(Weird.apply(given[0], number, given[1]))
    made = given[0] * 1
    if made.requires_grad:
        made.register_hook(lambda grad: torch.tanh(grad) * number)  # not linear: the sum has to be there
    return [made]


def random_leaves(random: Random, dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = []
    for _ in range(LEAVES):
        shape = random.choice(SHAPES)
        count = 1
        for n in shape:
            count *= n
        values = [random.randint(-100, 100) / 100 for _ in range(count)]
        leaf = torch.tensor(values, dtype=dtype).reshape(shape).requires_grad_(random.random() < 0.8)
        leaves.append(leaf)
    return leaves


def hook_leaves(leaves: Sequence[torch.Tensor]) -> None:
    for leaf in leaves[:1]:
        if leaf.requires_grad:
            leaf.register_hook(lambda grad: torch.tanh(grad) + 1)
