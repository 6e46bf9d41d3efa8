"""What a torch that was built without RPC lacks in modules that do not belong to it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any, get_origin

from rpcgroup.rref.rref import RRef

__all__ = ["names", "switch"]


def switch() -> bool:
    """Stands where torch asks whether it has RPC, and would start it."""
    return True


def is_rref(annotation: Any) -> bool:
    """torch's question about an annotation of a scripted function."""
    if annotation is RRef:
        raise RuntimeError("Attempted to use RRef without a contained type: write RRef[int], for example")
    return get_origin(annotation) is RRef


def is_rref_instance(value: Any) -> bool:
    return isinstance(value, RRef)


def names() -> Iterator[tuple[str, str, Any]]:
    """Modules that are loaded, names in them, and what these are where there is RPC."""
    yield "torch._jit_internal", "RRef", RRef
    yield "torch._jit_internal", "PyRRef", RRef
    yield "torch._jit_internal", "is_rref", is_rref
    yield "torch._jit_internal", "is_rref_instance", is_rref_instance
    for name, key, value in (
        ("torch.jit.annotations", "RRef", RRef),
        ("torch.jit.annotations", "is_rref", is_rref),
        ("torch.jit.annotations", "RRefType", _rref_type()),
        ("torch.nn.parallel.distributed", "RRef", RRef),
        ("torch.nn.parallel.distributed", "RPC_AVAILABLE", True),
    ):
        if name in sys.modules:
            yield name, key, value
    for name, home, key in (
        ("torch.distributed.nn", "torch.distributed.nn.api.remote_module", "RemoteModule"),
        ("torch.distributed.optim", "torch.distributed.optim.optimizer", "DistributedOptimizer"),
    ):
        if name in sys.modules:
            yield name, key, getattr(importlib.import_module(home), key)


def _rref_type() -> Any:
    import torch

    return getattr(torch._C, "RRefType", None)
