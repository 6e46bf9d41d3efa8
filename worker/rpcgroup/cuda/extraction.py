"""The tensors on devices inside any value, found without a copy of their data.

Source: torch finds those of a future's value by pickling it and keeping nothing (`torch._jit_internal`).
"""

from __future__ import annotations

import copyreg
import pickle
import threading
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Final

import torch

from rpcgroup.cuda.runtime import Runtime

__all__ = ["device_tensors"]

_PLAIN: Final = frozenset(
    (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
)
_CONTAINERS: Final = (tuple, list, set, frozenset, dict)
# A future and a thread give access to what is no part of a value; a storage pickles as a copy of its data.
_CLOSED: Final = (type, torch.futures.Future, threading.Thread, torch.UntypedStorage, torch.TypedStorage)


def device_tensors(value: Any, runtime: Runtime) -> list[torch.Tensor]:
    """The tensors of `value` on the runtime's devices, each once, a sparse one as those that it is made of.

    Containers are walked through. Anything else is looked into as pickling sees it; what cannot be pickled is
    passed over, save the variables that a function closes over. Raises nothing.
    """
    found: dict[int, torch.Tensor] = {}
    others = _walk(value, runtime, found)
    if others:
        try:
            _Search(runtime, found).dump(others)
        except Exception:
            pass  # what has been found until then
    return list(found.values())


def _walk(value: Any, runtime: Runtime, found: dict[int, torch.Tensor]) -> list[Any]:
    """Find what containers hold; returns what is neither plain, a tensor, nor a container."""
    others: list[Any] = []
    seen: set[int] = set()
    ahead = [value]
    while ahead:
        item = ahead.pop()
        if type(item) in _PLAIN:
            continue
        if isinstance(item, torch.Tensor):
            _note(item, runtime, found)
        elif isinstance(item, _CONTAINERS) and not getattr(item, "__dict__", None):
            if id(item) not in seen:
                seen.add(id(item))
                ahead += (*item.keys(), *item.values()) if isinstance(item, dict) else item
        else:
            others.append(item)
    return others


def _note(tensor: torch.Tensor, runtime: Runtime, found: dict[int, torch.Tensor]) -> None:
    if not tensor.is_cuda or not isinstance(tensor, runtime.tensor_type) or id(tensor) in found:
        return
    if tensor.layout is torch.strided:
        found[id(tensor)] = tensor
    else:
        found.update((id(part), part) for part in _parts(tensor.detach()))


def _parts(sparse: torch.Tensor) -> Iterator[torch.Tensor]:
    if sparse.layout is torch.sparse_coo:
        yield sparse._indices()
    elif sparse.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield sparse.crow_indices()
        yield sparse.col_indices()
    else:
        yield sparse.ccol_indices()
        yield sparse.row_indices()
    yield sparse._values() if sparse.layout is torch.sparse_coo else sparse.values()


class _Search(pickle.Pickler):
    """Pickles to nowhere, and notes the tensors it comes by."""

    def __init__(self, runtime: Runtime, found: dict[int, torch.Tensor]) -> None:
        super().__init__(_Nowhere(), 5, buffer_callback=_nothing)
        self._runtime = runtime
        self._found = found

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            _note(item, self._runtime, self._found)
            return _NOTHING
        if isinstance(item, _CLOSED):
            return _NOTHING
        if isinstance(item, FunctionType):
            if item is _nothing:
                return NotImplemented  # by its name
            return _nothing, (_closed_over(item), item.__defaults__)
        if type(item) in copyreg.dispatch_table:
            return NotImplemented
        try:
            reduced = item.__reduce_ex__(5)
        except Exception:
            return _NOTHING
        return reduced if isinstance(reduced, tuple) else _NOTHING


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def _nothing(*_: Any) -> None:
    pass


_NOTHING: Final = (_nothing, ())


def _closed_over(function: FunctionType) -> list[Any]:
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:
            pass  # not assigned yet
    return contents
