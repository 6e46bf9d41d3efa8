from __future__ import annotations

import pytest
import torch

from examples.digits import data, model


@pytest.mark.parametrize("late", [0, 20])
def test_gradients_lead_to_a_classifier_even_if_they_come_late(late: int) -> None:
    torch.manual_seed(0)
    train, held_out = data.load()
    net, trainer = model.build(), model.build()
    versions = [model.weights(net)] * (late + 1)
    random = torch.Generator().manual_seed(0)
    for _ in range(24):
        for batch in data.batches(train, 32, random):
            model.set_weights(trainer, versions.pop(0))
            model.descend(net, model.gradients(trainer, batch))
            versions.append(model.weights(net))
    assert model.accuracy(net, held_out) > 0.9


def test_weights_carry_a_model_over() -> None:
    here, there = model.build(), model.build()
    taken = model.weights(here)
    model.set_weights(there, taken)
    pixels = torch.rand(5, 64)
    assert torch.equal(here(pixels), there(pixels))
    model.set_weights(here, [torch.zeros_like(w) for w in taken])
    assert torch.equal(there(pixels), there(pixels)) and not torch.equal(here(pixels), there(pixels))
