"""Modules of this package under torch's names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

__all__ = ["ALIASES", "AliasFinder", "own_name"]

ALIASES: Final = {
    "torch.distributed.rpc": "rpcgroup.compat.rpc",
    "torch.distributed.autograd": "rpcgroup.compat.autograd",
    "torch.distributed.optim.optimizer": "rpcgroup.optim",
}
"""Each with what is below it. The optimizer of older torches takes its steps within TorchScript, in C++."""


def own_name(name: str) -> str | None:
    """The module of this package that stands for torch's `name`, if there is one."""
    for theirs, ours in ALIASES.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return None


class AliasFinder(MetaPathFinder):
    """Finds torch's modules in this package: each is one module, by whatever name it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = own_name(fullname)
        if ours is None or importlib.util.find_spec(ours) is None:
            return None
        return ModuleSpec(fullname, _AliasLoader(ours))


class _AliasLoader(Loader):
    def __init__(self, ours: str) -> None:
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._ours)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import under torch's name has put its own there
