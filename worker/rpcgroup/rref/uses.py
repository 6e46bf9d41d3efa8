"""What a program does with a reference: get the value, or call its methods where it lives."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rpcgroup.errors import CallTimeoutError, PeerUnreachableError, RRefError
from rpcgroup.rref.cell import Cell
from rpcgroup.rref.failures import owner_died_error
from rpcgroup.rref.messages import encode_fetch
from rpcgroup.rref.port import CallKind, WorkerInfoLike

if TYPE_CHECKING:
    from rpcgroup.rref.context import RRefContext
    from rpcgroup.rref.rref import RRef
    from rpcgroup.rref.user import UserFork

__all__ = [
    "AsyncResult",
    "ask_type",
    "call_method",
    "fetch",
    "local_value",
    "owner_of",
    "run_method",
    "to_here",
]


def to_here(context: RRefContext, rref: RRef[Any], timeout: float) -> Any:
    context.require_usable(rref, "call to_here() on it")
    if rref._user is None:
        return _value_of(context, rref._cell, timeout)
    return fetch(context, rref._user, timeout)


def local_value(context: RRefContext, rref: RRef[Any]) -> Any:
    user = rref._user
    if user is None:
        context.require_usable(rref)
        return _value_of(context, rref._cell, 0)
    port = context.port
    raise RRefError(
        f"For UserRRef(rref_id={context.show_id(user.rref_id)}, fork_id={context.show_id(user.fork_id)}), "
        f"can't call localValue() on user {port.worker_info(port.incarnation, port.name)}. "
        f"Call it on owner {owner_of(context, rref)}"
    )


def fetch(context: RRefContext, user: UserFork, timeout: float) -> Any:
    """A copy of the value from its owner."""
    try:
        return context.port.fetch(user.owner, encode_fetch(user.rref_id), timeout).wait()
    except PeerUnreachableError as exc:
        if context.is_dead(user.owner):
            raise owner_died_error(user) from exc
        raise


def owner_of(context: RRefContext, rref: RRef[Any]) -> WorkerInfoLike:
    port, user = context.port, rref._user
    if user is None:
        return port.worker_info(port.incarnation, port.name)
    return port.worker_info(user.owner, user.owner_name)


def call_method(
    rref: RRef[Any], kind: CallKind, timeout: float, name: str, /, *args: Any, **kwargs: Any
) -> Any:
    """At the caller: one call to the owner, where torch first asks for the type of the value."""
    if kind == "remote":
        rref._context.before_remote(rref, name, timeout)
    return _call_owner(rref, kind, timeout, run_method, (rref, name, args, kwargs))


def ask_type(rref: RRef[Any], timeout: float) -> Any:
    """A future of it."""
    return _call_owner(rref, "async", timeout, _rref_typeof_on_owner, (rref,))


class AsyncResult:
    """What `run_method` returns for an `async_execution` method: the answer is the future's."""

    __slots__ = ("future",)

    def __init__(self, future: Any) -> None:
        self.future = future


def run_method(rref: RRef[Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """At the owner."""
    method = getattr(rref.local_value(), name)
    result = method(*args, **kwargs)
    return AsyncResult(result) if hasattr(method, "_wrapped_async_rpc_function") else result


def _rref_typeof_on_owner(rref: RRef[Any]) -> type:
    """At the owner; its name is what profiles show."""
    return type(rref.local_value())


def _call_owner(rref: RRef[Any], kind: CallKind, timeout: float, fn: Any, args: tuple[Any, ...]) -> Any:
    context = rref._context

    def start() -> Any:
        context.require_usable(rref)
        return context.port.call(kind, owner_of(context, rref), fn, args, {}, timeout)

    return context.start_async(start) if kind == "async" else start()


def _value_of(context: RRefContext, cell: Cell | None, timeout: float) -> Any:
    """On the owner; blocks while the value is not there, `timeout` as in `Port.fetch`."""
    assert cell is not None
    if not cell.done:
        _wait_for(context, cell, timeout)
    if cell.error is not None:
        raise cell.error
    if cell.events is not None:
        cell.events.wait()
    return cell.value


def _wait_for(context: RRefContext, cell: Cell, timeout: float) -> None:
    seconds = context.port.rpc_timeout if timeout == -1 else timeout
    done = threading.Event()
    context.when_set(cell, lambda value, error: done.set())
    if not context.port.wait(done, seconds or None):
        raise CallTimeoutError(
            f"RPC ran for more than set timeout ({int(seconds * 1000)} ms): the value is not there yet"
        )
