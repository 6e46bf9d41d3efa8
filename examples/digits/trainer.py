"""An elastic trainer: computes gradients on its share of the images, sends each to the server."""

from __future__ import annotations

import secrets
import threading

import torch

import rpcgroup as rpc
from examples.digits import data, model
from examples.digits.server import Answer, ParameterServer, parameter_server

__all__ = ["train"]

BATCH = 32
PAUSE_SECONDS = 0.02
"""Between two gradients: all the processes of this example share the few cores of one machine."""


def train() -> None:
    """Until the server has enough or this trainer is asked to leave; a gradient on its way is always sent."""
    torch.set_num_threads(1)
    group = rpc.init_rpc()
    leaving = threading.Event()
    rpc.on_drain(lambda request: leaving.set())
    server = rpc.remote(_server(group), parameter_server)
    trainer = _Trainer(server)
    while not (leaving.is_set() or trainer.enough):
        trainer.epoch(group, leaving)
    trainer.farewell()
    rpc.shutdown()


class _Trainer:
    def __init__(self, server: rpc.RRef[ParameterServer]) -> None:
        self._server = server
        self._images: data.Images = server.rpc_sync().images()
        self._name = rpc.get_worker_info().name
        self._life = secrets.token_hex(8)
        self._model = model.build()
        self._random = torch.Generator().manual_seed(int(self._life[:8], 16))
        self._epochs = 0
        self._sent = 0
        self._share = -1
        self._take(self._server.rpc_sync().current())

    def epoch(self, group: rpc.Group, leaving: threading.Event) -> None:
        """Once over the images that are mine as long as the group is as it is now."""
        trainers = [member.name for member in group.members(role="worker")]
        mine = self._images[data.shard(self._name, [*trainers, self._name], len(self._images))]
        if len(mine) != self._share:
            self._share = len(mine)
            print(
                f"{len(trainers)} trainers: {self._share} of {len(self._images)} images are mine", flush=True
            )
        if not len(mine):
            self._take(self._server.rpc_sync().current())
            leaving.wait(PAUSE_SECONDS)
            return
        for batch in data.batches(mine, BATCH, self._random):
            self._push(model.gradients(self._model, batch))
            if self.enough or leaving.wait(PAUSE_SECONDS):
                break
        self._epochs += 1

    def farewell(self) -> None:
        self._server.rpc_sync().farewell(self._name, self._life, self._sent)
        print(f"leaving after {self._sent} gradients, all answered", flush=True)

    def _push(self, gradients: list[torch.Tensor]) -> None:
        number, self._sent = self._sent, self._sent + 1
        self._take(self._server.rpc_sync().push(self._name, self._life, self._epochs, number, gradients))

    def _take(self, answer: Answer) -> None:
        self.enough = answer.enough
        model.set_weights(self._model, answer.weights.to_here())


def _server(group: rpc.Group) -> str:
    """The server's name; a trainer may be here first."""
    with group.changes() as changes:  # before looking: one that joins in between is not missed
        for member in group.members(role="server"):
            return member.name
        for change in changes:
            if change.member.role == "server":
                return change.member.name
    raise RuntimeError("the group ended before a server joined")
