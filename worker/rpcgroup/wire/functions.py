"""Functions by number: a module-level function is described once per channel, a number names it afterwards.

The description is a pickle by reference; where the two programs' `__main__` differ, a function of `__main__`
is described by value. Lambdas, closures and bound methods carry state and are never numbered: they travel
inside each call.
"""

from __future__ import annotations

import pickle
import secrets
import sys
import types
from collections.abc import Callable
from typing import Any, Final

from rpcgroup.errors import FunctionNotFoundError, SerializationError
from rpcgroup.wire.scripts import is_scripted, reduce_scripted

__all__ = ["FunctionNumbers", "describe_function", "load_function", "main_identity"]

_NO_PROGRAM: Final = f"process {secrets.token_hex(8)}"
MAX_FUNCTIONS: Final = 65536
"""Per channel; a program that makes more functions than this sends them inside its calls."""

_KINDS: Final = (types.FunctionType, types.BuiltinFunctionType, type)


def main_identity() -> str:
    """What tells whether two processes run the same program: the path of `__main__`.

    Where it has none, in an interactive session for example, no other process runs the same.
    """
    main = sys.modules.get("__main__")
    return str(getattr(main, "__file__", None) or _NO_PROGRAM)


class _Reduced:
    """Pickles as what a function is reduced to, for those that have no `__reduce__` of their own."""

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def describe_function(function: Callable[..., Any], *, by_value: bool) -> bytes:
    """The definition that goes over the wire. Raises what pickle raises where there is none."""
    if is_scripted(function):
        return pickle.dumps(_Reduced(reduce_scripted(function)), 5)
    if by_value and getattr(function, "__module__", None) == "__main__":
        import cloudpickle

        described: bytes = cloudpickle.dumps(function, 5)
        return described
    return pickle.dumps(function, 5)


def load_function(description: bytes | bytearray) -> Callable[..., Any]:
    """The described function. Raises `FunctionNotFoundError` with a hint where this process cannot import it."""
    try:
        function: Callable[..., Any] = pickle.loads(description)
    except (AttributeError, ImportError) as exc:
        if isinstance(exc, FunctionNotFoundError):
            raise
        raise FunctionNotFoundError(
            f"{exc}. The callee could not import the function: the RPC pickler does not serialize its code, so it "
            "must be importable under the same module name in the callee's process, or be defined in the caller's "
            "__main__ to be sent by value."
        ) from exc
    return function


class FunctionNumbers:
    """The sender's side of one channel. The caller serialises `define`; `get` is a plain dict's."""

    __slots__ = ("_numbers", "get")

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self.get = self._numbers.get

    def next_number(self, function: Callable[..., Any]) -> int:
        """The number a function would get; 0 where it cannot have one."""
        if len(self._numbers) >= MAX_FUNCTIONS:
            return 0
        if is_scripted(function):
            return len(self._numbers) + 1
        if not isinstance(function, _KINDS):
            return 0
        name = getattr(function, "__qualname__", "<")
        if "<" in name or getattr(function, "__closure__", None):
            return 0
        return len(self._numbers) + 1

    def publish(self, function: Callable[..., Any], number: int) -> None:
        """From now on calls may name the number: its definition must already be queued."""
        self._numbers[function] = number


def require_callable(function: object) -> None:
    if not callable(function):
        raise SerializationError(f"expected a function to call, got {type(function).__name__}: {function!r}")
