"""Where a graph crosses to another worker: `Send` at the sender of a tensor, `Recv` at its receiver.

A `Recv` is a node of torch's graph, of which each received tensor is an output. A `Send` is none: it only knows
the edges that the gradients of its tensors enter by. Their names are those of torch's C++ nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

__all__ = ["RECV_NAME", "SEND_NAME", "Recv", "RecvInfo", "Send", "attach_recv", "is_recv"]


SEND_NAME: Final = "torch::distributed::autograd::SendRpcBackward"
RECV_NAME: Final = "torch::distributed::autograd::RecvRpcBackward"


class Send:
    """The tensors of one message that require grad, in order."""

    __slots__ = ("_owners", "next_functions", "to")

    def __init__(self, to: int, tensors: Sequence[torch.Tensor]) -> None:
        """`to` is the incarnation of their receiver."""
        self.to = to
        self.next_functions = tuple(map(_edge, tensors))
        with torch.enable_grad():
            self._owners = [_Owner.apply(t) for t in tensors if isinstance(t.grad_fn, torch._C._FunctionBase)]

    def name(self) -> str:
        return SEND_NAME


def _edge(tensor: torch.Tensor) -> tuple[Any, int]:
    if tensor.grad_fn is None:
        with torch.enable_grad():
            # An op where there is one, since `apply` keeps the GIL. The first use of a leaf makes its node, under a
            # lock of the leaf's for which torch 2.15 then wants the GIL: two first uses could wait for each other.
            plain = tensor.layout is torch.strided
            # It has a name: the node lives as long as it does.
            owner: Any = tensor.view_as(tensor) if plain else _Owner.apply(tensor)
        edge: tuple[Any, int] = owner.grad_fn.next_functions[0]
        return edge
    return tensor.grad_fn, tensor.output_nr


class _Owner(torch.autograd.Function):
    """A small tensor that depends on another one, of any layout: it shows where the gradient of that one enters, and
    keeps its graph alive, and not its data.

    The Python object of a custom function's node does not do that, in older versions of torch.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None: ...


class RecvInfo(NamedTuple):
    """What a `Recv` node knows: where its gradients go."""

    context_id: int
    message_id: int
    sender: int
    """Incarnation of the worker that has the matching `Send`."""
    tensors: int
    """How many were received."""
    of_answer: bool = False
    """They came with an answer: the device maps of this worker say where the gradients go, not those of the sender."""


class Recv(torch.autograd.Function):
    """Gives the received tensors a place in the graph, where a pass ends: it takes the gradients out there.

    Its backward is run only where that is done by torch's engine, into `captured`.
    """

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, info: RecvInfo, tensors: list[torch.Tensor]) -> Any:
        ctx.info = info
        ctx.captured = None
        return tuple(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.captured is not None:
            ctx.captured[:] = grads
            return None, None, None
        raise RuntimeError(
            f"backward() reached a tensor that came from another worker, in autograd context {ctx.info.context_id}: "
            "call the backward of distributed autograd, with that context id"
        )


Recv._backward_cls.__name__ = RECV_NAME
_RECV_NODE: Final[type] = Recv._backward_cls


def attach_recv(info: RecvInfo, tensors: Sequence[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
    """The node, and the tensors as its outputs."""
    # Makes the outputs require grad; the node is the end of every walk, so it is never looked at again.
    anchor = torch.zeros((), requires_grad=True)
    # Detached: what was decoded may be a view, and an output that is one could not be changed in place.
    plain = [tensor.detach() for tensor in tensors]
    with torch.enable_grad():
        outputs = Recv.apply(anchor, info, plain)
    return outputs[0].grad_fn, list(outputs)


def is_recv(node: Any) -> bool:
    return isinstance(node, _RECV_NODE)
