"""What TorchScript knows by name: builtin operators and scripted functions travel by it, scripted modules by value.

Two processes have the same operators, and the same scripted functions once they have imported the module that
scripts them.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from rpcgroup.errors import FunctionNotFoundError, SerializationError

__all__ = [
    "SCRIPTED",
    "SCRIPTED_MODULES",
    "ScriptFunction",
    "find_operator",
    "is_scripted",
    "operator",
    "reduce_script_module",
    "reduce_scripted",
    "require_arguments",
    "script_function",
]

ScriptFunction: Any = torch.jit.ScriptFunction
_Operator: Any = type(torch.ops.aten.add)
SCRIPTED: Final = (ScriptFunction, _Operator)
"""What a SCRIPT_CALL can name."""
SCRIPTED_MODULES: Final = tuple(
    getattr(torch.jit, name)
    for name in ("RecursiveScriptModule", "TopLevelTracedModule")
    if hasattr(torch.jit, name)
)
_TOP: Final = "__torch__."
_find_builtin: Any = torch.jit._builtins._find_builtin


def is_scripted(function: object) -> bool:
    return isinstance(function, SCRIPTED)


def find_operator(function: object) -> Callable[..., Any] | None:
    """The operator that `torch.add` and its like stand for: it chooses the overload by the arguments' types."""
    name = _find_builtin(function)
    return None if name is None else operator(name)


def operator(name: str) -> Callable[..., Any]:
    """By its name, `aten::add`."""
    namespace, _, op = name.partition("::")
    try:
        found: Callable[..., Any] = getattr(getattr(torch.ops, namespace), op)
    except AttributeError as exc:
        raise FunctionNotFoundError(f"there is no operator {name} in the callee's process") from exc
    return found


def script_function(name: str) -> Callable[..., Any]:
    """By its qualified name, `__torch__.module.function`; its module is imported where that has not been done."""
    found = _find_scripted(name)
    if found is None:
        module = name.removeprefix(_TOP).rpartition(".")[0]
        if module:
            try:
                importlib.import_module(module)
            except ImportError:
                pass  # what is missing is told below
            found = _find_scripted(name)
    if found is None:
        raise FunctionNotFoundError(
            f"the callee knows no scripted function {name}: it must import the module that scripts it"
        )
    return found


def require_arguments(function: Any, args: Sequence[Any]) -> None:
    """Raises `SerializationError` where a scripted function takes fewer: known before anything is sent."""
    takes = len(function.schema.arguments)
    if len(args) > takes:
        raise SerializationError(
            f"{function.name}() expected at most {takes} argument(s) but received {len(args)} argument(s). "
            f"Declaration: {function.schema}"
        )


def reduce_scripted(function: Any) -> tuple[Callable[..., Any], tuple[str]]:
    """As pickle's `__reduce__`, which these functions do not have."""
    if isinstance(function, ScriptFunction):
        return script_function, (function.qualified_name,)
    return operator, (function._qualified_op_name,)


def reduce_script_module(module: Any) -> tuple[Callable[..., Any], tuple[bytes]]:
    saved = io.BytesIO()
    torch.jit.save(module, saved)
    return load_script_module, (saved.getvalue(),)


def load_script_module(saved: bytes) -> Any:
    return torch.jit.load(io.BytesIO(saved))  # type: ignore[no-untyped-call]


def _find_scripted(name: str) -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = torch.jit._state._python_cu.find_function(name)
    return found
