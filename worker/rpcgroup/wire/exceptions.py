"""A remote exception: sent by type and text, rebuilt as its own type.

As in torch, the text begins `On WorkerInfo(...):`, followed by the exception's repr and the remote traceback.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any

from rpcgroup.errors import SerializationError

__all__ = ["describe_exception", "rebuild_exception"]


def describe_exception(exc: BaseException, where: str) -> bytes:
    """What travels: the pickled type (empty where it has no name that the caller can import), name and text."""
    lines = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    text = f"On {where}:\n{exc!r}\n{lines}"
    try:
        kind = pickle.dumps(type(exc), 5)
    except Exception:
        kind = b""
    return pickle.dumps((kind, type(exc).__qualname__, text), 5)


def rebuild_exception(data: bytes | bytearray | memoryview) -> BaseException:
    """The exception to raise at the caller; a `RuntimeError` that says so where its type cannot be rebuilt."""
    kind, name, text = pickle.loads(data)
    try:
        cls: Any = pickle.loads(kind) if kind else None
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise SerializationError(f"{name} is not importable here")
    except Exception as exc:
        return RuntimeError(f"{text}\n(of type {name}, which cannot be rebuilt by the caller: {exc})")
    if not issubclass(cls, Exception):
        # SystemExit or KeyboardInterrupt of the callee must not end the caller.
        return RuntimeError(text)
    try:
        rebuilt: BaseException = cls(text)
    except Exception:
        rebuilt = cls.__new__(cls, text)
        rebuilt.args = (text,)
    return rebuilt
