"""A remote exception: sent by type and text, rebuilt as its own type.

As in torch, the text begins `On WorkerInfo(...):`, followed by the exception's repr and the remote traceback.
A worker that lets an exception of its own callee through adds one line: repeating the text, as torch does,
would double it with every call that the exception passes.
"""

from __future__ import annotations

import functools
import pickle
import traceback
from typing import Any

from rpcgroup.errors import SerializationError

__all__ = ["describe_exception", "is_remote", "rebuild_exception"]


def describe_exception(exc: BaseException, where: str) -> bytes:
    """What travels: the pickled type (empty where it cannot be pickled), name and text. Never raises."""
    cls = getattr(type(exc), "_rpcgroup_original", type(exc))
    try:
        kind = pickle.dumps(cls, 5)
    except Exception:
        kind = b""
    return pickle.dumps((kind, cls.__qualname__, _text(exc, where)), 5)


def rebuild_exception(data: bytes | bytearray | memoryview) -> BaseException:
    """The exception to raise at the caller; a `RuntimeError` that says so where its type is not to be had.

    One whose constructor wants more than a text is made without it, and is a `RuntimeError` as well as what it was:
    programs for torch, which cannot make it at all, catch that.
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


def _text(exc: BaseException, where: str) -> str:
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
    rebuilt: Exception
    try:
        rebuilt = cls(text)
    except Exception as exc:
        text = f"{text}\n(Original exception on remote side was {name}, made here without its constructor: {exc})"
        both = _and_runtime_error(cls)  # type: ignore[arg-type]
        rebuilt = both.__new__(both, text)
    if not _shows(rebuilt, text):
        rebuilt.args = (text,)
        if not _shows(rebuilt, text):
            raise SerializationError("it does not show a text that is given to it")
    return rebuilt


@functools.cache
def _and_runtime_error(cls: type[Exception]) -> type[Exception]:
    if issubclass(cls, RuntimeError):
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_rpcgroup_original": cls}
    return type(cls.__name__, (cls, RuntimeError), names)


def _shows(exc: Exception, text: str) -> bool:
    try:
        # The first line only: KeyError shows its argument's repr.
        return text.split("\n", 1)[0] in str(exc)
    except Exception:
        return False
