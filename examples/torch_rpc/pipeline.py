"""A model in two parts on two workers, trained by a third: distributed autograd and a distributed optimizer.

A batch goes through in pieces, so that both workers have something to do.
"""

from __future__ import annotations

import torch
import torch.distributed.autograd as dist_autograd
import torch.distributed.rpc as rpc
from torch import nn
from torch.distributed.optim import DistributedOptimizer

from examples.torch_rpc.launch import launch

__all__ = ["main"]

STEPS = 15
BATCH = 64
PIECES = 4
FEATURES = 16
HIDDEN = 32
CLASSES = 4


class Stage(nn.Module):
    """One part of the model; takes and gives references, so that what lies between stays off the master."""

    def __init__(self, seed: int, sizes: tuple[int, int], last: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Linear(*sizes)] if last else [nn.Linear(*sizes), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: rpc.RRef[torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = self.layers(x.to_here())
        return result

    def parameter_rrefs(self) -> list[rpc.RRef[nn.Parameter]]:
        return [rpc.RRef(parameter) for parameter in self.parameters()]


class Pipeline(nn.Module):
    """Stages on workers 1 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = [
            rpc.remote("worker1", Stage, args=(1, (FEATURES, HIDDEN), False)),
            rpc.remote("worker2", Stage, args=(2, (HIDDEN, CLASSES), True)),
        ]

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        first, second = self.stages
        outputs = []
        for piece in batch.chunk(PIECES):
            between = first.remote().forward(rpc.RRef(piece))
            outputs.append(second.rpc_async().forward(between))
        return torch.cat(torch.futures.wait_all(outputs))

    def parameter_rrefs(self) -> list[rpc.RRef[nn.Parameter]]:
        return [rref for stage in self.stages for rref in stage.rpc_sync().parameter_rrefs()]


def train() -> None:
    model = Pipeline()
    optimizer = DistributedOptimizer(torch.optim.SGD, model.parameter_rrefs(), lr=0.5)
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(FEATURES, CLASSES, generator=generator)
    for step in range(STEPS):
        x = torch.randn(BATCH, FEATURES, generator=generator)
        with dist_autograd.context() as context_id:
            loss = nn.functional.cross_entropy(model(x), (x @ truth).argmax(1))
            dist_autograd.backward(context_id, [loss])
            optimizer.step(context_id)
        if step % 5 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.5f}", flush=True)


def run(rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    rpc.init_rpc("master" if rank == 0 else f"worker{rank}", rank=rank, world_size=world_size)
    if rank == 0:
        train()
    rpc.shutdown()


def main() -> None:
    launch(run, 3)


if __name__ == "__main__":
    main()
