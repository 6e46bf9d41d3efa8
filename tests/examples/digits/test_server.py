from __future__ import annotations

import pytest
import torch

import rpcgroup as rpc
from examples.digits import model, server


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> server.ParameterServer:
    """A server in no group: what it would reference stands for itself."""
    monkeypatch.setattr(rpc, "RRef", lambda value: value)
    torch.manual_seed(0)
    return server.ParameterServer()


def push(parameters: server.ParameterServer, number: int) -> server.Answer:
    gradients = model.gradients(model.build(), parameters.images())
    return parameters.push("t", "life", 0, number, gradients)


def test_a_gradient_changes_the_weights(alone: server.ParameterServer) -> None:
    before, after = alone.current().weights, push(alone, 0).weights
    assert before is not after
    assert alone.current().weights is after  # one reference until the next gradient


def test_enough_is_told_and_the_model_stays(alone: server.ParameterServer) -> None:
    assert not push(alone, 0).enough
    steps, accuracy = alone.look(server.ANY)
    answer = push(alone, 1)
    assert answer.enough
    assert alone.look(server.NEVER) == (steps + 1, accuracy)  # it arrived, and is counted


def test_books_are_kept_by_trainer(alone: server.ParameterServer) -> None:
    push(alone, 0)
    alone.farewell("t", "life", 1)
    assert (alone.books().arrived, alone.books().lost) == (1, 0)
