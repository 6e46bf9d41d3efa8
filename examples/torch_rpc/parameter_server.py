"""A parameter server: trainers send gradients, and get the parameters once all of them have come.

The server's `update` is an `async_execution`: it holds no thread while it waits for the slowest trainer.
"""

from __future__ import annotations

import threading

import torch
import torch.distributed.rpc as rpc
from torch import nn

from examples.torch_rpc.launch import launch

__all__ = ["main"]

TRAINERS = 2
STEPS = 20
BATCH = 32
FEATURES = 8


class Server:
    """One model, and the gradients of the step under way by trainer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(FEATURES, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.lock = threading.Lock()  # guards the two below
        self.gradients: dict[int, list[torch.Tensor]] = {}
        self.updated: torch.futures.Future[nn.Module] = torch.futures.Future()

    def get_model(self) -> nn.Module:
        return self.model

    @staticmethod
    @rpc.functions.async_execution
    def update(
        server: rpc.RRef[Server], trainer: int, gradients: list[torch.Tensor]
    ) -> torch.futures.Future[nn.Module]:
        return server.local_value().add(trainer, gradients)

    def add(self, trainer: int, gradients: list[torch.Tensor]) -> torch.futures.Future[nn.Module]:
        with self.lock:
            self.gradients[trainer] = gradients
            updated = self.updated
            if len(self.gradients) == TRAINERS:
                # In the order of the trainers, not of their arrival: sums of floats depend on it.
                of_all = [self.gradients[rank] for rank in sorted(self.gradients)]
                for parameter, *parts in zip(self.model.parameters(), *of_all, strict=True):
                    parameter.grad = torch.stack(parts).mean(0)
                self.optimizer.step()
                self.gradients, self.updated = {}, torch.futures.Future()
                updated.set_result(self.model)
        return updated


def train(server: rpc.RRef[Server], trainer: int) -> list[float]:
    """The losses of one trainer."""
    generator = torch.Generator().manual_seed(trainer)
    truth = torch.arange(FEATURES, dtype=torch.float32) / FEATURES
    model = server.rpc_sync().get_model()
    losses = []
    for _ in range(STEPS):
        x = torch.randn(BATCH, FEATURES, generator=generator)
        model.zero_grad()
        loss = nn.functional.mse_loss(model(x).squeeze(1), x @ truth)
        loss.backward()
        losses.append(loss.item())
        gradients = [parameter.grad for parameter in model.parameters()]
        model = rpc.rpc_sync(server.owner(), Server.update, args=(server, trainer, gradients))
    return losses


def run(rank: int, world_size: int) -> None:
    if rank == 0:
        rpc.init_rpc("server", rank=rank, world_size=world_size)
        server = rpc.RRef(Server())
        calls = [rpc.rpc_async(f"trainer{r}", train, args=(server, r)) for r in range(1, world_size)]
        for trainer, losses in enumerate(torch.futures.wait_all(calls), start=1):
            print(f"trainer{trainer}: {losses[0]:.6f} -> {losses[-1]:.6f}", flush=True)
    else:
        rpc.init_rpc(f"trainer{rank}", rank=rank, world_size=world_size)
    rpc.shutdown()


def main() -> None:
    torch.set_num_threads(1)
    launch(run, TRAINERS + 1)


if __name__ == "__main__":
    main()
