"""A backward pass from a reference: it runs where the tensor is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from rpcgroup.errors import RRefError
from rpcgroup.rref.uses import local_value, owner_of

if TYPE_CHECKING:
    from rpcgroup.rref.rref import RRef

__all__ = ["NO_CONTEXT", "backward"]

NO_CONTEXT: Final = -1


def backward(rref: RRef[Any], context_id: int, retain_graph: bool) -> None:
    context = rref._context
    if rref.is_owner():
        backward_here(rref, context_id, retain_graph)
        return
    context.require_usable(rref)
    if context_id == NO_CONTEXT:
        raise RRefError("User RRefs require 'dist_autograd_ctx_id' to be specified")
    args = (rref, context_id, retain_graph)
    context.port.call("sync", owner_of(context, rref), backward_here, args, {}, -1)


def backward_here(rref: RRef[Any], context_id: int, retain_graph: bool) -> None:
    """At the owner."""
    root = local_value(rref._context, rref)
    if not isinstance(root, torch.Tensor):
        raise RRefError("RRef should contain a tensor for .backward()")
    if context_id == NO_CONTEXT:
        torch.autograd.backward([root], retain_graph=retain_graph)
    else:
        rref._context.port.backward(context_id, root, retain_graph)
