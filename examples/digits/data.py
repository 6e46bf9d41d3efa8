"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels, split and sharded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

__all__ = ["BLOCKS", "Images", "batches", "load", "shard"]

BLOCKS = 96
"""The training images are dealt out in this many blocks; 16 trainers still get about the same."""


@dataclass(frozen=True)
class Images:
    """`pixels` is [n, 64], float, 0 to 1; `digits` is [n], int64."""

    pixels: torch.Tensor
    digits: torch.Tensor

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: torch.Tensor) -> Images:
        return Images(self.pixels[index], self.digits[index])


def load() -> tuple[Images, Images]:
    """For training 80 %, held out 20 %; always the same split."""
    from sklearn.datasets import load_digits  # only the server needs it: trainers get their images from there

    raw = load_digits()
    images = Images(torch.tensor(raw.data, dtype=torch.float32) / 16, torch.tensor(raw.target))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out = len(images) // 5
    return images[order[held_out:]], images[order[:held_out]]


def shard(trainer: str, trainers: Iterable[str], count: int) -> torch.Tensor:
    """The indices, below `count`, of the images that are this trainer's.

    Each block goes to the trainer for which the hash of both is highest (rendezvous hashing): all trainers
    compute the same without asking each other, and one that comes or goes moves no block between the rest.
    """
    everyone = sorted(set(trainers))
    mine = [block for block in range(BLOCKS) if max(everyone, key=lambda t: _weight(t, block)) == trainer]
    if not mine:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([torch.arange(block, count, BLOCKS) for block in mine])


def batches(images: Images, size: int, generator: torch.Generator) -> Iterator[Images]:
    """One epoch in random order."""
    order = torch.randperm(len(images), generator=generator)
    return (images[order[start : start + size]] for start in range(0, len(images), size))


def _weight(trainer: str, block: int) -> bytes:
    return hashlib.blake2b(f"{trainer}/{block}".encode(), digest_size=8).digest()
