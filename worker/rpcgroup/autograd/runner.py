"""Runs stages of a graph by torch's engine, and keeps the gradients that are on their way between two stages.

A gradient that leaves a stage has to be kept as it is: the hooks of the tensor it belongs to see the sum of all its
parts, once. torch's engine gives out a gradient only after the hooks, so the nodes on the way to such an edge are
run one by one, and what comes out of them is added up here as the engine would. All the others are one engine call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import GradientEdge

from rpcgroup.autograd.functions import RecvInfo, is_recv
from rpcgroup.autograd.gradients import accumulate, fit, own
from rpcgroup.autograd.graph import Edge, Stage

__all__ = ["Results", "Runner"]


class Results(NamedTuple):
    """Of one stage."""

    leaves: list[tuple[torch.Tensor, torch.Tensor]]
    """Leaf and gradient; a leaf without a gradient is not there."""
    received: list[tuple[RecvInfo, list[torch.Tensor | None]]]
    """Each recv function, and the gradients of its tensors."""


class Runner:
    """Of one pass. Not thread-safe."""

    def __init__(self, retain_graph: bool) -> None:
        self._retain_graph = retain_graph
        self._pending: dict[Edge, torch.Tensor] = {}
        self._split = False
        """Some gradient has been kept: others of this pass may share its memory."""

    def put(self, edges: Sequence[Edge], grads: Sequence[torch.Tensor | None]) -> None:
        """Gradients that enter here, one for each edge."""
        for edge, grad in zip(edges, grads, strict=True):
            if grad is not None:
                self._add(edge, grad)

    def run(self, stage: Stage) -> Results:
        """Raises what a node or a hook raises."""
        for node in stage.early:
            self._run_early(node)
        return self._run_rest(stage)

    def _add(self, edge: Edge, grad: torch.Tensor) -> None:
        self._pending[edge] = accumulate(self._pending.get(edge), grad)

    def _run_rest(self, stage: Stage) -> Results:
        ready = {*stage.rest, *stage.terminals}
        outputs = [edge for edge in self._pending if edge[0] in ready]
        grads = [self._pending.pop(edge) for edge in outputs]
        places = [place for node in stage.terminals for place in _places(node)]
        got: Sequence[Any] = [None] * len(places)
        if outputs and places:
            got = torch.autograd.grad(
                [GradientEdge(*edge) for edge in outputs],
                [GradientEdge(*place) for place in places],
                grads,
                retain_graph=self._retain_graph,
                allow_unused=True,
            )
        leaves = [None if is_recv(node) else node.variable for node, _ in places]
        if self._split:
            owned = [
                g if g is None or leaf is None else g.clone() for g, leaf in zip(got, leaves, strict=True)
            ]
        else:
            owned = own(got, leaves)
        received: dict[Any, list[Any]] = {node: [] for node in stage.terminals if is_recv(node)}
        for (node, _), grad in zip(places, got, strict=True):
            if node in received:
                received[node].append(grad)
        return Results(
            [
                (leaf, grad)
                for leaf, grad in zip(leaves, owned, strict=True)
                if leaf is not None and grad is not None
            ],
            [(node.info, grads) for node, grads in received.items()],
        )

    def _run_early(self, node: Any) -> None:
        self._split = True
        metadata = node._input_metadata
        grads: list[Any] = [self._pending.pop((node, number), None) for number in range(len(metadata))]
        present = [number for number, grad in enumerate(grads) if grad is not None]
        if present:
            # An engine run from an edge to itself: it runs the hooks of the tensor, and nothing else.
            edges = [GradientEdge(node, number) for number in present]
            hooked = torch.autograd.grad(edges, edges, [grads[number] for number in present])
            for number, grad in zip(present, hooked, strict=True):
                grads[number] = grad
        with torch.no_grad():
            grads = _run_hooks(node.register_prehook, grads, ())
            out = _call(node, metadata, grads)
            out = _run_hooks(node.register_hook, out, (tuple(grads),))
        for edge, grad in zip(node.next_functions, out, strict=False):
            following, number = edge
            if following is not None and grad is not None:
                self._add((following, number), fit(grad, following._input_metadata[number]))


def _places(node: Any) -> list[Edge]:
    if is_recv(node):
        return [(node, number) for number in range(len(node._input_metadata))]
    return [(node, 0)] if hasattr(node, "variable") else []


def _call(node: Any, metadata: Sequence[Any], grads: list[Any]) -> list[Any]:
    """What the node gives to each of its edges."""
    if not isinstance(node, torch._C._FunctionBase):
        out = node(*grads)
        return list(out) if isinstance(out, tuple) else [out]
    # A custom function: where it wants zeros instead of None cannot be asked for, and they mean the same.
    given = [_zeros(m) if grad is None else grad for grad, m in zip(grads, metadata, strict=True)]
    out = node.apply(*given)  # type: ignore[attr-defined]
    if not isinstance(out, tuple):
        out = (out,)
    # It answers for every argument of its forward, the edges are those of the tensors: this is what they share.
    needed = iter([grad for grad, needs in zip(out, node.needs_input_grad, strict=False) if needs])
    return [next(needed, None) if following is not None else None for following, _ in node.next_functions]


def _zeros(metadata: Any) -> torch.Tensor:
    return torch.zeros(metadata.shape, dtype=metadata.dtype, device=metadata.device)


def _run_hooks(register: Callable[..., Any], grads: list[Any], more: tuple[Any, ...]) -> list[Any]:
    """The Python hooks of a node, which nobody tells but the place where one more of them is put."""
    handle = register(_no_hook)
    hooks: Any = handle.hooks_dict_ref()
    handle.remove()
    for hook in list((hooks or {}).values()):
        changed = hook(tuple(grads), *more)
        if changed is not None:
            grads = list(changed) if isinstance(changed, tuple) else [changed]
    return grads


def _no_hook(*grads: Any) -> None: ...
