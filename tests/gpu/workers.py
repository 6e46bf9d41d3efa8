"""A static group over a file: this process and some that it spawns. It needs nothing but torch and rpcgroup."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

import rpcgroup as rpc
from rpcgroup.group import Group
from rpcgroup.options import TensorPipeRpcBackendOptions

__all__ = ["HERE", "NO_GPU", "CudaDevice", "device_maps", "joined", "serve"]

HERE: Final = "here"
NO_GPU: Final = "plain"
"""The worker that is started as on a machine without a GPU."""
SECONDS: Final = 120.0
"""For the others to start, and to end: each imports torch and opens the device."""

Maps = Mapping[str, Mapping[str, str]]
"""Of `here`: worker -> device of `here` -> device of that worker."""


def device_maps(count: int) -> Maps:
    """For a machine with so many devices; with several, those of `there` are others than those of `here`."""
    return {
        "there": {f"cuda:{index}": f"cuda:{(index + 1) % count}" for index in range(count)},
        "host": {"cuda:0": "cpu"},
        "push": {"cpu": "cuda:0"},
        "hurt": {"cuda:0": "cuda:0"},
        NO_GPU: {},
    }


class CudaDevice:
    """What the scenarios need to make and to look at tensors; `RecordingDevice` has the same."""

    def tensor(self, data: Any, device: int = 0) -> torch.Tensor:
        return torch.as_tensor(data).to(f"cuda:{device}")

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().cpu()


def serve(name: str, names: list[str], meeting: str) -> None:
    """The life of another worker: until it is terminated."""
    if name == NO_GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    join(name, names, meeting, {})
    multiprocessing.process.parent_process().join()  # type: ignore[union-attr]


def join(name: str, names: list[str], meeting: str, maps: Maps) -> Group:
    options = TensorPipeRpcBackendOptions(device_maps=maps, rpc_timeout=SECONDS)  # type: ignore[arg-type]
    return rpc.init_rpc(
        name,
        rank=names.index(name),
        world_size=len(names),
        init_method=f"file://{meeting}",
        rpc_backend_options=options,
    )


@contextmanager
def joined(
    meeting: Path, maps: Maps, serve: Callable[[str, list[str], str], None] = serve
) -> Iterator[Group]:
    """This process joins as `here`, with a process for each worker of the maps; all end with the context.

    `serve` is the life of one, with its name, those of all, and where they meet.
    """
    names = [HERE, *maps]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=serve, args=(name, names, str(meeting)), name=name, daemon=True)
        for name in maps
    ]
    for process in processes:
        process.start()
    try:
        group = join(HERE, names, str(meeting), maps)
        try:
            yield group
        finally:
            rpc.shutdown(graceful=False)  # what a test has left undone is not this one's to wait for
    finally:
        for process in processes:
            process.terminate()
            process.join(SECONDS)
            process.close()
