"""A learner and actors: the actors play episodes with the learner's policy, the learner improves it.

Each actor holds a reference to the learner and asks it for every action; the learner starts them by `remote` and
collects what happened by `to_here`.
"""

from __future__ import annotations

import torch
import torch.distributed.rpc as rpc
from torch import nn
from torch.distributions import Categorical

from examples.torch_rpc.launch import launch

__all__ = ["main"]

ACTORS = 2
ROUNDS = 12
EPISODES = 4
LENGTH = 8
"""Cells of the corridor; the reward is at its right end."""
STEPS = 12


class Corridor:
    """Left or right, from the middle; one's place is all there is to see."""

    def __init__(self) -> None:
        self.place = LENGTH // 2

    def observe(self) -> torch.Tensor:
        return nn.functional.one_hot(torch.tensor(self.place), LENGTH).float()

    def step(self, action: int) -> float:
        self.place = min(max(self.place + (1 if action else -1), 0), LENGTH - 1)
        return 1.0 if self.place == LENGTH - 1 else 0.0


class Actor:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def play(self, learner: rpc.RRef[Learner]) -> list[tuple[torch.Tensor, int, float]]:
        """One episode: what was seen, done and got, step by step."""
        corridor, seen = Corridor(), []
        for _ in range(STEPS):
            observation = corridor.observe()
            probabilities = learner.rpc_sync().act(observation)
            action = int(torch.multinomial(probabilities, 1, generator=self.generator))
            seen.append((observation, action, corridor.step(action)))
        return seen


class Learner:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.policy = nn.Linear(LENGTH, 2)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=0.1)
        self.rref = rpc.RRef(self)
        self.actors = [rpc.remote(f"actor{rank}", Actor, args=(rank,)) for rank in range(1, ACTORS + 1)]

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            probabilities: torch.Tensor = self.policy(observation).softmax(0)
        return probabilities

    def improve(self) -> float:
        """One round of episodes and one step; returns the mean reward of an episode."""
        losses, total = [], 0.0
        for _ in range(EPISODES):
            for episode in [actor.remote().play(self.rref) for actor in self.actors]:
                steps = episode.to_here()
                rewards = torch.tensor([reward for _, _, reward in steps])
                total += float(rewards.sum())
                to_come = rewards.flip(0).cumsum(0).flip(0)
                logits = self.policy(torch.stack([observation for observation, _, _ in steps]))
                chosen = torch.tensor([action for _, action, _ in steps])
                losses.append(-(Categorical(logits=logits).log_prob(chosen) * to_come).sum())
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        self.optimizer.step()
        return total / (EPISODES * ACTORS)


def run(rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    rpc.init_rpc("learner" if rank == 0 else f"actor{rank}", rank=rank, world_size=world_size)
    if rank == 0:
        learner = Learner()
        for number in range(ROUNDS):
            print(f"round {number}: mean reward {learner.improve():.3f}", flush=True)
    rpc.shutdown()


def main() -> None:
    launch(run, ACTORS + 1)


if __name__ == "__main__":
    main()
