"""Decorators for functions that are called remotely."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["async_execution"]

F = TypeVar("F", bound=Callable[..., Any])


def async_execution(function: F) -> F:
    """The function returns a `Future` on the callee, and the future's value is the answer of the call.

    The call occupies no thread until then. To be the outermost decorator but for `staticmethod` and `classmethod`.
    Source: `torch.distributed.rpc.functions.async_execution`, whose mark is the same attribute: what one of the two
    decorates, both know.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    wrapper._wrapped_async_rpc_function = function  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]
