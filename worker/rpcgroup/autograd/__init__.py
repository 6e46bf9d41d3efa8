"""Distributed autograd: gradients through calls to other workers.

    with autograd.context() as context_id:
        loss = rpc.rpc_sync("worker1", forward, args=(x,)).sum()
        autograd.backward(context_id, [loss])
        gradients = autograd.get_gradients(context_id)

The gradients are kept by the context, at the worker that has the leaf, and never put into `.grad`. Names and
signatures are those of `torch.distributed.autograd`; what begins with an underscore is there for programs and tests
that use torch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch

from rpcgroup.autograd.container import Container
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.errors import NotInitializedError

__all__ = ["DistAutogradContext", "backward", "context", "get_gradients", "is_available", "use_container"]

_container: Container | None = None
"""Of this process's agent."""


def use_container(container: Container | None) -> None:
    """Let this module mean the contexts of `container` from now on; None: raise `NotInitializedError`."""
    global _container
    _container = container


def is_available() -> bool:
    return True


class context:
    """The calls of this thread within a `with` block of it are one graph; gives the context's id.

    At its end the context is released on all workers. Raises `RuntimeError` within another one.
    """

    def __enter__(self) -> int:
        self._id = _new_context().id
        return self._id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _release_context(self._id)


def backward(context_id: int, roots: Iterable[torch.Tensor], retain_graph: bool = False) -> None:
    """Compute the gradients of all leaves that the scalar tensors `roots` depend on, on all workers.

    Returns when they are in the context, everywhere. Raises `RuntimeError` that names the worker where one fails,
    `PeerUnreachableError` where one has died, and `TypeError` for other arguments.
    """
    if (
        not isinstance(context_id, int)
        or not isinstance(roots, list | tuple)
        or not all(map(_is_tensor, roots))
    ):
        raise TypeError(
            "backward(): incompatible function arguments. It takes (context_id: int, roots: list[Tensor], "
            f"retain_graph: bool = False), and was given ({type(context_id).__name__}, {type(roots).__name__})"
        )
    _require_container().backward(context_id, list(roots), bool(retain_graph))


def get_gradients(context_id: int) -> dict[torch.Tensor, torch.Tensor]:
    """The gradients that this worker has, by leaf. Raises `RuntimeError` where there is no such context."""
    return _require_container().retrieve(context_id).gradients()


def _new_context() -> DistAutogradContext:
    return _require_container().new_context()


def _current_context() -> DistAutogradContext:
    return _require_container().current_context()


def _retrieve_context(context_id: int) -> DistAutogradContext:
    return _require_container().retrieve(context_id)


def _release_context(context_id: int) -> None:
    _require_container().release(context_id)


def _is_valid_context(context_id: int) -> None:
    """Raises `RuntimeError` where it is none."""
    _require_container().retrieve(context_id)


def _get_max_id() -> int:
    return _require_container().max_id()


def _get_debug_info() -> dict[str, str]:
    return _require_container().debug_info()


def _init(worker_id: int) -> None:
    """What torch does here, `init_rpc` has done."""


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _require_container() -> Container:
    if _container is None:
        raise NotInitializedError("RPC has not been initialized, or has been shut down: call init_rpc first")
    return _container
