"""Which leaves are parameters of a DistributedDataParallel.

Its reducer is told of a gradient by a hook in C++ on the node that accumulates it, and reads and writes `.grad`.
That node has to be run by torch's engine then, which tells nobody of such hooks. So every such module is noted as
it is made, from the import of this package on. (To look for them among all objects later is no way: other threads'
half-made tuples would be found too, which breaks them.)
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

__all__ = ["parameters"]

_modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def parameters() -> set[int]:
    """The ids of all parameters of such modules."""
    return {id(parameter) for module in list(_modules) for parameter in module.parameters()}


def _note(module: nn.Module, name: str, submodule: Any) -> None:
    if _is_ddp(type(module)):
        _modules.add(module)


def _is_ddp(kind: type) -> bool:
    """By name: importing it would bring torch.distributed along."""
    return any(
        base.__name__ == "DistributedDataParallel" and base.__module__ == "torch.nn.parallel.distributed"
        for base in kind.__mro__
    )


register_module_module_registration_hook(_note)
