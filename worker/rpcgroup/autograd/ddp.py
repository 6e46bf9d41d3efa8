"""Which leaves are parameters of a DistributedDataParallel.

Its reducer is told of a gradient by a hook in C++ on the node that accumulates it, and reads and writes `.grad`.
That node has to be run by torch's engine then, which tells nobody of such hooks: so the modules are found here.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

__all__ = ["parameters", "watch"]

_modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_lock = threading.Lock()  # guards _watching, _looked
_watching = False
_looked = False


def watch() -> None:
    """Take note of every such module that is made from now on."""
    global _watching
    with _lock:
        if not _watching:
            register_module_module_registration_hook(_note)
            _watching = True


def parameters() -> set[int]:
    """The ids of all parameters of such modules."""
    global _looked
    with _lock:
        if not _looked:  # for those that were made before `watch`; once, as it takes a while
            for thing in gc.get_objects():
                if _is_ddp(type(thing)):
                    _modules.add(thing)
            _looked = True
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
