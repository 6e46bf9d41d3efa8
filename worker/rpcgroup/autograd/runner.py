"""Runs stages of a graph by torch's engine, and keeps the gradients that are on their way between two stages.

A gradient that leaves a stage has to be kept as it is: the hooks of the tensor it belongs to see the sum of all its
parts, once. torch's engine gives out a gradient only after the hooks, so the nodes on the way to such an edge are
run one by one, and what comes out of them is added up here as the engine would. All the others are one engine call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
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

    def __init__(self, retain_graph: bool, retain: Callable[[Sequence[Any]], None] | None = None) -> None:
        """`retain` is told what torch's engine keeps or makes on streams of its own, and is used on the current ones.

        None: there are no streams.
        """
        self._retain_graph = retain_graph
        self._retain = retain
        self._pending: dict[Edge, torch.Tensor] = {}
        self._split = False
        """Some gradient was put aside: others of this pass may share its memory."""
        self._kept: dict[torch.Tensor, torch.Tensor | None] = {}
        """Leaves, and what their `.grad` was."""

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

    def keep(self, leaves: Sequence[torch.Tensor]) -> None:
        """Leaves whose gradients torch's engine has to accumulate itself, in `.grad`, until `give_back`.

        What a reducer does with them it can do in a later stage.
        """
        for leaf in leaves:
            self._kept[leaf] = leaf.grad
            leaf.grad = None

    def give_back(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The gradients of those; `.grad` is again what it was before."""
        got = []
        while self._kept:
            leaf, before = self._kept.popitem()
            if leaf.grad is not None:
                got.append((leaf, leaf.grad.clone()))  # it can be a view of what the reducer uses again
            leaf.grad = before
        return got

    def _run_rest(self, stage: Stage) -> Results:
        ready = {*stage.rest, *stage.terminals}
        outputs = [edge for edge in self._pending if edge[0] in ready]
        grads = [self._pending.pop(edge) for edge in outputs]
        edges = [GradientEdge(*edge) for edge in outputs]
        leaves = [node for node in stage.terminals if hasattr(node, "variable")]
        recvs = [node for node in stage.terminals if is_recv(node)]
        if not edges:
            return Results([], [(node.info, [None] * node.info.tensors) for node in recvs])
        if any(node.variable in self._kept for node in leaves):
            return self._run_whole(edges, grads, leaves, recvs)
        places = [GradientEdge(node, 0) for node in leaves]
        places += [GradientEdge(node, number) for node in recvs for number in range(node.info.tensors)]
        got = _run_engine(edges, places, grads, self._retain_graph) if places else ()
        if self._retain is not None:
            self._retain(got)
        rest = iter(got[len(leaves) :])
        received = [(node.info, list(islice(rest, node.info.tensors))) for node in recvs]
        return Results(self._finish(leaves, got) if leaves else [], received)

    def _finish(self, leaves: list[Any], got: Sequence[Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        owned = own(got, [node.variable for node in leaves], self._split)
        with torch.no_grad():
            hooked = [(node, _run_leaf_hooks(node, grad)) for node, grad in zip(leaves, owned, strict=True)]
        return [(node.variable, grad) for node, grad in hooked if grad is not None]

    def _run_whole(
        self, edges: list[GradientEdge], grads: list[torch.Tensor], leaves: list[Any], recvs: list[Any]
    ) -> Results:
        """As torch does it, into `.grad`, which is put aside for those leaves that are not kept."""
        aside = [(node.variable, node.variable.grad) for node in leaves if node.variable not in self._kept]
        for leaf, _ in aside:
            leaf.grad = None
        for node in recvs:
            node.captured = [None] * node.info.tensors
        try:
            torch.autograd.backward(edges, grads, retain_graph=self._retain_graph)
            got = [(leaf, leaf.grad) for leaf, _ in aside]
            received = [(node.info, node.captured) for node in recvs]
            if self._retain is not None:
                self._retain([*got, *received, *((leaf, leaf.grad) for leaf in self._kept)])
        finally:
            for leaf, before in aside:
                leaf.grad = before
            for node in recvs:
                node.captured = None
        return Results([(leaf, grad) for leaf, grad in got if grad is not None], received)

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
        if self._retain is not None:
            self._retain([*grads, *_saved_by(node)])
        with torch.no_grad():
            grads = _run_hooks(node.register_prehook, grads, ())
            out = _call(node, metadata, grads)
            out = _run_hooks(node.register_hook, out, (tuple(grads),))
        for edge, grad in zip(node.next_functions, out, strict=False):
            following, number = edge
            if following is not None and grad is not None:
                self._add((following, number), fit(grad, following._input_metadata[number]))


def _run_engine(
    edges: list[GradientEdge], places: list[GradientEdge], grads: list[torch.Tensor], retain_graph: bool
) -> Sequence[Any]:
    """What `torch.autograd.grad` does, which takes half as long again to look at its arguments."""
    return torch.autograd.Variable._execution_engine.run_backward(
        tuple(edges),
        tuple(grads),
        retain_graph,
        False,
        tuple(places),
        allow_unreachable=True,
        accumulate_grad=False,
    )


def _run_leaf_hooks(node: Any, grad: torch.Tensor | None) -> torch.Tensor | None:
    """The Python hooks of the node that would accumulate the gradient, had it been run."""
    (grad,) = _run_hooks(node.register_prehook, [grad], ())
    _run_hooks(node.register_hook, [], ((grad,),))
    return grad


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


def _saved_by(node: Any) -> list[Any]:
    """The tensors that a node has kept of its forward."""
    if isinstance(node, torch._C._FunctionBase):
        return list(node.saved_tensors)
    names = [name for name in dir(node) if name.startswith("_saved_")]
    return [getattr(node, name) for name in names]


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
