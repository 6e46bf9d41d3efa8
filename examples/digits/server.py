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
        self._optimizer = model.Momentum(self._model)
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
        """Apply one gradient; it counts even if it comes when it is already enough."""
        with self._lock:
            self._ledger.enter(trainer, life, epoch, number)
            self._optimizer.step(gradients)
            self._weights = None
            return self._answer()

    def farewell(self, trainer: str, life: str, sent: int) -> None:
        with self._lock:
            self._ledger.close(trainer, life, sent)

    def finish(self) -> None:
        """From now on every trainer is told that it is enough."""
        with self._lock:
            self._enough = True

    def look(self) -> tuple[int, float]:
        """(gradients applied, accuracy on the held-out images)."""
        with self._lock:
            return self._ledger.arrived, model.accuracy(self._model, self._held_out)

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
    while True:
        steps, accuracy = server.look()
        seconds = time.monotonic() - began
        rpc.progress(step=steps, accuracy=round(accuracy, 4))
        trainers = len(group.members(role="worker"))
        if (line := f"{trainers} trainers, accuracy {accuracy:.1%}") != told:
            print(f"{line}, {steps} gradients", flush=True)
            told = line
        if (accuracy >= target and seconds >= at_least) or seconds >= at_most:
            break
        pause.wait(LOOK_SECONDS)
    server.finish()
    _wait_for_farewells(group)
    steps, accuracy = server.look()
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
