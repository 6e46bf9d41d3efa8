"""Sums of gradients, and a gradient as the place it goes to wants it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["accumulate", "fit", "own"]


def accumulate(sum_: torch.Tensor | None, grad: torch.Tensor) -> torch.Tensor:
    """A new tensor: what either is used for elsewhere stays as it is."""
    if sum_ is None:
        return grad
    if sum_.layout is not torch.strided and grad.layout is torch.strided:
        return grad + sum_  # a dense sum comes first, the other way round is not implemented
    return sum_ + grad


def fit(grad: torch.Tensor, metadata: Any) -> torch.Tensor:
    """Of the shape and dtype of the output that it is the gradient of, as torch's engine does between two nodes.

    `metadata` is the output's, from `_input_metadata`. Raises `RuntimeError` where the shapes cannot be reconciled.
    """
    shape, dtype = metadata.shape, metadata.dtype
    if not metadata.is_nested_tensor and tuple(grad.shape) != tuple(shape):
        grad = grad.sum_to_size(shape)
    if grad.dtype != dtype:
        grad = grad.real.to(dtype) if grad.is_complex() and not dtype.is_complex else grad.to(dtype)
    return grad


def own(
    grads: Sequence[torch.Tensor | None], leaves: Sequence[torch.Tensor], shared: bool
) -> list[torch.Tensor | None]:
    """The gradients of the leaves, which come first, each with memory that it shares with no other of `grads`.

    `shared`: they may share it with something else.
    """
    count = Counter(_memory(grad) for grad in grads if grad is not None)
    return [
        None if grad is None else _own(grad, leaf, shared or count[_memory(grad)] > 1)
        for grad, leaf in zip(grads, leaves, strict=False)
    ]


def _own(grad: torch.Tensor, leaf: torch.Tensor, shared: bool) -> torch.Tensor:
    if grad.layout is not torch.strided:
        dense = grad.layout is not torch.sparse_coo or (
            grad._indices().is_contiguous() and grad._values().is_contiguous()
        )
        return grad if dense and not shared else grad.clone()
    if not shared and (grad.is_contiguous() or grad.stride() == leaf.stride()):
        return grad
    return grad.clone(memory_format=torch.contiguous_format)


def _memory(grad: torch.Tensor) -> int:
    if grad.layout is torch.strided:
        return grad.untyped_storage().data_ptr() or id(grad)
    if grad.layout is torch.sparse_coo:
        return grad._values().untyped_storage().data_ptr() or id(grad)
    return id(grad)
