"""A classifier of digits: one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from examples.digits.data import Images

__all__ = ["Momentum", "accuracy", "build", "gradients", "set_weights", "weights"]


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


class Momentum:
    """Gradient descent with momentum. torch.optim has it too, but takes seconds to import."""

    def __init__(self, model: nn.Module, rate: float = 0.03, momentum: float = 0.9) -> None:
        self._parameters = list(model.parameters())
        self._velocities = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._rate = rate
        self._momentum = momentum

    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, velocity, gradient in zip(
                self._parameters, self._velocities, gradients, strict=True
            ):
                velocity.mul_(self._momentum).add_(gradient)
                parameter.sub_(velocity, alpha=self._rate)


def accuracy(model: nn.Module, images: Images) -> float:
    """The part of the images that is told right, 0 to 1."""
    with torch.no_grad():
        return float((model(images.pixels).argmax(1) == images.digits).float().mean())
