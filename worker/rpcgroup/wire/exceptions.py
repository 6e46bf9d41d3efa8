"""A remote exception: sent by type and text, rebuilt as its own type.

As in torch, the text begins `On WorkerInfo(...):`, followed by the exception's repr and the remote traceback.
A worker that lets an exception of its own callee through adds one line: repeating the text, as torch does,
would double it with every call that the exception passes.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any

from rpcgroup.errors import SerializationError, and_runtime_error, original_type

__all__ = ["describe_exception", "exception_text", "is_remote", "rebuild_exception"]


def describe_exception(exc: BaseException, where: str) -> bytes:
    """What travels: the pickled type (empty where it cannot be pickled), name and text. Never raises."""
    cls = original_type(exc)
    try:
        kind = pickle.dumps(cls, 5)
    except Exception:
        kind = b""
    return pickle.dumps((kind, cls.__qualname__, exception_text(exc, where)), 5)


def rebuild_exception(data: bytes | bytearray | memoryview) -> BaseException:
    """The exception to raise at the caller; a `RuntimeError` that says so where its type is not to be had.

    It is a `RuntimeError` as well as what it was, but for ValueErrors and TypeErrors: all others arrive as that from
    torch's RPC, and programs catch it. One whose constructor wants more than a text is made without it, and is a
    `RuntimeError` always.
    """
    kind, name, text = pickle.loads(data)
    try:
        rebuilt = _rebuild(pickle.loads(kind) if kind else None, name, text)
    except Exception as exc:
        rebuilt = RuntimeError(
            f"{text}\n"
            f"(Original exception on remote side was of type {name}, which cannot be rebuilt by the caller: {exc})"
        )
    rebuilt._rpcgroup_text = text  # type: ignore[attr-defined]
    return rebuilt


def is_remote(exc: BaseException) -> bool:
    """Whether another worker raised it: a function there, or what that function called."""
    return hasattr(exc, "_rpcgroup_text")


def exception_text(exc: BaseException, where: str) -> str:
    """What its caller sees of an error that `where` raised."""
    passed_on: str | None = getattr(exc, "_rpcgroup_text", None)
    if passed_on is not None:
        if passed_on.startswith(f"On {where}:\n") and "\npassed on by " not in passed_on:
            return passed_on  # kept here as the value of a reference
        return f"{passed_on}\npassed on by {where}"
    lines = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    try:
        shown = repr(exc)
    except Exception as broken:
        shown = f"<{type(exc).__qualname__}, whose repr failed: {type(broken).__name__}>"
    return f"On {where}:\n{_unescaped(shown)}\n{lines}"


def _unescaped(shown: str) -> str:
    """A repr as it is to be read: its line breaks are line breaks."""
    try:
        return shown.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:
        return shown


def _rebuild(cls: Any, name: str, text: str) -> BaseException:
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        raise SerializationError(f"{name} is not importable here")
    if not issubclass(cls, Exception):
        # SystemExit or KeyboardInterrupt of the callee must not end the caller.
        return RuntimeError(text)
    if not issubclass(cls, ValueError | TypeError):
        cls = and_runtime_error(cls)
    rebuilt: Exception
    try:
        rebuilt = cls(text)
    except Exception as exc:
        text = f"{text}\n(Original exception on remote side was {name}, made here without its constructor: {exc})"
        both: Any = and_runtime_error(cls)
        rebuilt = both.__new__(both, text)
    if not _shows(rebuilt, text):
        rebuilt.args = (text,)
        if not _shows(rebuilt, text):
            raise SerializationError("it does not show a text that is given to it")
    return rebuilt


def _shows(exc: Exception, text: str) -> bool:
    try:
        # The first line only: KeyError shows its argument's repr.
        return text.split("\n", 1)[0] in str(exc)
    except Exception:
        return False
