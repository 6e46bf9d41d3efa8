"""The parameter server: holds the model, applies the gradients that trainers send, says when it is enough."""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from dataclasses import dataclass

import torch

import rpcgroup as rpc
from examples.digits import data, model
from examples.digits.ledger import Ledger

__all__ = ["Answer", "ParameterServer", "parameter_server", "serve"]

LOOK_SECONDS = 0.5
FAREWELL_SECONDS = 10.0
ANY, NEVER = 0.0, 2.0
"""Accuracies: one that is always reached, and one that never is."""


@dataclass(frozen=True)
class Answer:
    """What a trainer gets for a gradient: where the new weights are, and whether to go on."""

    weights: rpc.RRef[list[torch.Tensor]]
    enough: bool


class ParameterServer:
    """Thread-safe: its methods are called from all trainers at once, by RPC."""

    def __init__(self) -> None:
        self._images, self._held_out = data.load()
        self._lock = threading.Lock()  # guards all below; the model is changed by one gradient at a time
        self._model = model.build()
        self._ledger = Ledger()
        self._enough = False
        self._weights: rpc.RRef[list[torch.Tensor]] | None = None

    def images(self) -> data.Images:
        """Those to train on."""
        return self._images

    def current(self) -> Answer:
        with self._lock:
            return self._answer()

    def push(self, trainer: str, life: str, epoch: int, number: int, gradients: list[torch.Tensor]) -> Answer:
        """Apply one gradient; one that comes when it is already enough is only counted."""
        with self._lock:
            self._ledger.enter(trainer, life, epoch, number)
            if not self._enough:
                model.descend(self._model, gradients)
                self._weights = None
            return self._answer()

    def farewell(self, trainer: str, life: str, sent: int) -> None:
        with self._lock:
            self._ledger.close(trainer, life, sent)

    def look(self, enough_at: float) -> tuple[int, float]:
        """(gradients that arrived, accuracy on the held-out images).

        From that accuracy on it is enough: the model stays as it is, and every trainer is told.
        """
        with self._lock:
            accuracy = model.accuracy(self._model, self._held_out)
            self._enough = self._enough or accuracy >= enough_at
            return self._ledger.arrived, accuracy

    def books(self) -> Ledger:
        """The ledger itself, for when all trainers have left."""
        return self._ledger

    def _answer(self) -> Answer:
        """The weights stay here until fetched; one reference serves all trainers until the next gradient."""
        if self._weights is None:
            self._weights = rpc.RRef(model.weights(self._model))
        return Answer(self._weights, self._enough)


@functools.cache
def parameter_server() -> ParameterServer:
    """The one of this process; trainers call it with `rpc.remote`."""
    return ParameterServer()


def serve(target: float, at_least: float, at_most: float) -> None:
    """Until the accuracy is `target` and `at_least` seconds have passed; exits 1 after `at_most` seconds."""
    torch.set_num_threads(1)
    server = parameter_server()  # before joining: a trainer may ask for it at once
    group = rpc.init_rpc()
    began = time.monotonic()
    pause = threading.Event()
    told = ""
    enough = False
    while not enough:
        pause.wait(LOOK_SECONDS)
        seconds = time.monotonic() - began
        enough_at = ANY if seconds >= at_most else target if seconds >= at_least else NEVER
        steps, accuracy = server.look(enough_at)
        enough = accuracy >= enough_at
        rpc.progress(step=steps, accuracy=round(accuracy, 4))
        trainers = len(group.members(role="worker"))
        if (line := f"{trainers} trainers, accuracy {accuracy:.1%}") != told:
            print(f"{line}, {steps} gradients", flush=True)
            told = line
    _wait_for_farewells(group)
    summarize(server.books(), accuracy)
    rpc.shutdown()
    sys.exit(0 if accuracy >= target else 1)


def _wait_for_farewells(group: rpc.Group) -> None:
    """Each trainer hears with its next answer that it is enough, says what it sent, and leaves."""
    deadline = time.monotonic() + FAREWELL_SECONDS
    pause = threading.Event()
    while group.members(role="worker") and time.monotonic() < deadline:
        pause.wait(0.05)


def summarize(ledger: Ledger, accuracy: float) -> None:
    for account in ledger.accounts.values():
        end = "killed" if account.sent is None else f"said it sent {account.sent}"
        print(
            f"{account.trainer}: {account.arrived} gradients in {len(account.epochs)} epochs arrived; {end}"
        )
    print(f"test accuracy {accuracy:.2%}")
    summary = {
        "accuracy": accuracy,
        "gradients": ledger.arrived,
        "lost": ledger.lost,
        "repeated": ledger.repeated,
        "killed": [a.trainer for a in ledger.accounts.values() if a.sent is None],
    }
    print(f"summary {json.dumps(summary)}", flush=True)
