"""Optimizers for parameters that live on several workers."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch

from rpcgroup import api, autograd
from rpcgroup.futures import Future
from rpcgroup.rref.rref import RRef

__all__ = ["DistributedOptimizer"]

_lock = threading.Lock()
"""Held for each step on this worker: several optimizers can have the same parameters, as those of several trainers."""


class DistributedOptimizer:
    """An optimizer on each worker that owns some of the parameters; a step takes the gradients of one context.

    Concurrent steps are one after the other on each worker, in no particular order; between two of them anything
    can happen. Source: `torch.distributed.optim.DistributedOptimizer`.
    """

    def __init__(
        self,
        optimizer_class: type[torch.optim.Optimizer],
        params_rref: Iterable[RRef[torch.Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """`optimizer_class(parameters, *args, **kwargs)` is made at each owner; raises what one of them raises."""
        of_owner: dict[Any, list[RRef[torch.Tensor]]] = {}
        for rref in params_rref:
            of_owner.setdefault(rref.owner(), []).append(rref)
        futures = [
            api.rpc_async(owner, _make_optimizer, (optimizer_class, rrefs, args, kwargs))
            for owner, rrefs in of_owner.items()
        ]
        self.remote_optimizers = _wait_for_all(futures)

    def step(self, context_id: int) -> None:
        """One step of all of them, with the gradients that `context_id` has; returns when all have made it.

        Raises `RuntimeError` where there is no such context, and what one of the optimizers raises.
        """
        autograd._is_valid_context(context_id)
        futures = [
            api.rpc_async(optimizer.owner(), _step, (optimizer, context_id))
            for optimizer in self.remote_optimizers
        ]
        _wait_for_all(futures)


class _LocalOptimizer:
    """At an owner."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters

    def step(self, gradients: dict[torch.Tensor, torch.Tensor]) -> None:
        with _lock:
            before = [parameter.grad for parameter in self._parameters]
            try:
                for parameter in self._parameters:
                    parameter.grad = gradients.get(parameter)
                self._optimizer.step()
            finally:
                for parameter, grad in zip(self._parameters, before, strict=True):
                    parameter.grad = grad


def _make_optimizer(
    optimizer_class: Any, rrefs: list[RRef[torch.Tensor]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RRef[_LocalOptimizer]:
    parameters = [rref.local_value() for rref in rrefs]
    return RRef(_LocalOptimizer(optimizer_class(parameters, *args, **kwargs), parameters))


def _step(rref: RRef[_LocalOptimizer], context_id: int) -> None:
    rref.local_value().step(autograd.get_gradients(context_id))


def _wait_for_all(futures: list[Future[Any]]) -> list[Any]:
    """Their values, once all have ended; raises the first error."""
    errors: list[BaseException] = []
    values: list[Any] = []
    for future in futures:
        try:
            values.append(future.wait())
        except Exception as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
    return values
