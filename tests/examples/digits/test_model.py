from __future__ import annotations

import torch

from examples.digits import data, model


def test_gradients_lead_to_a_classifier() -> None:
    torch.manual_seed(0)
    train, held_out = data.load()
    net = model.build()
    optimizer = model.Momentum(net)
    random = torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in data.batches(train, 64, random):
            optimizer.step(model.gradients(net, batch))
    assert model.accuracy(net, held_out) > 0.9


def test_weights_carry_a_model_over() -> None:
    here, there = model.build(), model.build()
    taken = model.weights(here)
    model.set_weights(there, taken)
    pixels = torch.rand(5, 64)
    assert torch.equal(here(pixels), there(pixels))
    model.set_weights(here, [torch.zeros_like(w) for w in taken])
    assert torch.equal(there(pixels), there(pixels)) and not torch.equal(here(pixels), there(pixels))
