"""`torch.distributed.rpc.internal`: what a program serializes by itself, and names that it imports from here.

Calls do not pass here: they have a codec of their own.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import torch

from rpcgroup.errors import FunctionNotFoundError
from rpcgroup.rref.rref import RRef
from rpcgroup.wire.objects import register_reducer
from rpcgroup.wire.scripts import SCRIPTED_MODULES, reduce_script_module

__all__ = ["PythonUDF", "RPCExecMode", "RemoteException", "deserialize", "serialize"]


class RPCExecMode(Enum):
    SYNC = "sync"
    ASYNC = "async"
    ASYNC_JIT = "async_jit"
    REMOTE = "remote"


class PythonUDF(NamedTuple):
    """A call, as a program serializes it."""

    func: Any
    args: Any
    kwargs: Any


class RemoteException(NamedTuple):
    msg: str
    exception_type: type[BaseException]


class _Tables(threading.local):
    """What is left out of the pickle that this thread writes or reads."""

    table: list[Any] | None = None


_tables = _Tables()


class _InternalRPCPickler:
    """Turns an object into bytes and a table of its tensors and references, and back. Thread-safe.

    Bytes and table travel in a call as any other objects do.
    """

    def __init__(self) -> None:
        self._class_reducer_dict: dict[type, Callable[[Any], Any]] = {}

    def _register_reducer(self, obj_class: type, reducer: Callable[[Any], Any]) -> None:
        """Let objects of exactly that class travel as `reducer` says, in calls too; the first one counts."""
        if obj_class not in self._class_reducer_dict:
            self._class_reducer_dict[obj_class] = reducer
            register_reducer(obj_class, reducer)

    def serialize(self, obj: Any) -> tuple[bytes, list[Any]]:
        written = io.BytesIO()
        pickler = pickle.Pickler(written)
        pickler.dispatch_table = {
            **copyreg.dispatch_table,
            **dict.fromkeys(SCRIPTED_MODULES, reduce_script_module),
            torch.Tensor: _leave_out,
            RRef: _leave_out_reference,
            **self._class_reducer_dict,
        }
        outer, _tables.table = _tables.table, []
        try:
            pickler.dump(obj)
            return written.getvalue(), _tables.table
        finally:
            _tables.table = outer

    def deserialize(self, binary_data: bytes, tensor_table: list[Any]) -> Any:
        """What was serialized; an `AttributeError`, returned, where a function is not to be imported here."""
        outer, _tables.table = _tables.table, tensor_table
        try:
            return pickle.loads(binary_data)
        except AttributeError as exc:
            error = FunctionNotFoundError(
                f"{exc}. Default RPC pickler does not serialize function code. Ensure that UDFs are defined on both "
                "caller and callee modules."
            )
            error.__cause__ = exc
            return error
        finally:
            _tables.table = outer


def _leave_out(value: Any) -> tuple[Callable[[int], Any], tuple[int]]:
    assert _tables.table is not None
    _tables.table.append(value)
    return _take_in, (len(_tables.table) - 1,)


def _leave_out_reference(rref: RRef[Any]) -> tuple[Callable[[int], Any], tuple[int]]:
    rref._serialize()  # raises where it cannot be passed on
    return _leave_out(rref)


def _take_in(index: int) -> Any:
    assert _tables.table is not None
    return _tables.table[index]


_internal_rpc_pickler = _InternalRPCPickler()


def serialize(obj: Any) -> tuple[bytes, list[Any]]:
    return _internal_rpc_pickler.serialize(obj)


def deserialize(binary_data: bytes, tensor_table: list[Any]) -> Any:
    return _internal_rpc_pickler.deserialize(binary_data, tensor_table)


def _run_function(python_udf: Any) -> Any:
    """At the callee: a call that another pickler than the default one has serialized."""
    if isinstance(python_udf, AttributeError):
        raise python_udf
    return python_udf.func(*(python_udf.args or ()), **(python_udf.kwargs or {}))


def _build_rpc_profiling_key(
    exec_type: RPCExecMode, func_name: str, current_worker_name: str, dst_worker_name: str
) -> str:
    """The name of a call's event in a profile."""
    return f"rpc_{exec_type.value}#{func_name}({current_worker_name} -> {dst_worker_name})"


def _start_record_function(
    exec_type: RPCExecMode, func_name: str, current_worker_name: str, dest_worker_name: str
) -> Any:
    """Begin that event; the caller ends it."""
    key = _build_rpc_profiling_key(exec_type, str(func_name), current_worker_name, dest_worker_name)
    record = torch.autograd._RecordFunction()  # type: ignore[attr-defined]
    torch.autograd._run_before_callbacks(record, key)  # type: ignore[attr-defined]
    return record
