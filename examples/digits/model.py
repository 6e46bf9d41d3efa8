"""A classifier of digits: one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from examples.digits.data import Images

__all__ = ["accuracy", "build", "descend", "gradients", "set_weights", "weights"]

RATE = 0.05
"""Found to hold with gradients that are 20 steps late."""


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def weights(model: nn.Module) -> list[torch.Tensor]:
    """A copy, in the order of `model.parameters()`."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def set_weights(model: nn.Module, values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)


def gradients(model: nn.Module, batch: Images) -> list[torch.Tensor]:
    """Of the mean cross entropy over the batch, in the order of `model.parameters()`."""
    loss = functional.cross_entropy(model(batch.pixels), batch.digits)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def descend(model: nn.Module, gradients: Sequence[torch.Tensor]) -> None:
    """One step. Plain gradient descent: momentum would turn gradients that come late into a divergence."""
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.sub_(gradient, alpha=RATE)


def accuracy(model: nn.Module, images: Images) -> float:
    """The part of the images that is told right, 0 to 1."""
    with torch.no_grad():
        return float((model(images.pixels).argmax(1) == images.digits).float().mean())
