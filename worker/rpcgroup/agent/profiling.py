"""Calls from within a legacy profile of torch: each is an event `rpc_sync#function(caller -> callee)` of it, and what
ran for it at the callee follows as events named `<call>#remote_op: <event>`.

A profiled call is an ordinary one of `run_recorded`, which profiles the function where it runs.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from rpcgroup.agent.autograd_port import as_taken
from rpcgroup.agent.recording import Events, Recording, Settings, recorded, unrecorded
from rpcgroup.functions import async_execution
from rpcgroup.futures import Future
from rpcgroup.rref.uses import AsyncResult
from rpcgroup.wire.scripts import ScriptFunction, find_operator

if TYPE_CHECKING:
    from rpcgroup.agent.agent import Agent
    from rpcgroup.agent.members import Target
    from rpcgroup.rref.rref import RRef

__all__ = ["profiling_key", "remote", "rpc_async", "rpc_sync"]

MAX_KEPT: Final = 1024
"""Events of `remote` calls that are kept for their callers; those who do not come for them have died."""

_lock = threading.Lock()  # guards _kept
_kept: OrderedDict[str, Future[Events]] = OrderedDict()


def profiling_key(kind: str, function: Any, caller: str, callee: str) -> str:
    """The name of a call's event; `kind` is sync, async or remote."""
    return f"rpc_{kind}#{_name_of(function)}({caller} -> {callee})"


# At the caller.
def rpc_sync(
    recording: Recording,
    agent: Agent,
    to: Target,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    timeout: float,
) -> Any:
    """As `Agent.rpc_sync`, for the profile that `recording` stands beside."""
    key, node_id = _describe(recording, agent, "sync", to, function)
    call = recording.settings, function, *_arguments(agent, function, args, kwargs)
    with torch.autograd.profiler.record_function(key), unrecorded():
        result, events = agent.rpc_sync(to, run_recorded, call, None, timeout)
    recording.add(key, node_id, events)
    return result


def rpc_async(
    recording: Recording,
    agent: Agent,
    to: Target,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    timeout: float,
) -> Future[Any]:
    """As `Agent.rpc_async`. The future is done once the event of the call has ended; it cannot be cancelled."""
    key, node_id = _describe(recording, agent, "async", to, function)
    answer: torch.futures.Future[Any] = torch.futures.Future()
    with torch.autograd.profiler.record_function(key) as record:
        call = recording.settings, function, *_arguments(agent, function, args, kwargs)
        with unrecorded():
            future = agent.rpc_async(to, run_recorded, call, None, timeout)
        ended = record._call_end_callbacks_on_future(answer)
    result = _following(ended, future)

    def answered(done: Future[Any]) -> None:
        try:
            _, events = done.wait()
        except BaseException:
            pass
        else:
            recording.add(key, node_id, events)
        answer.set_result(None)

    future.add_done_callback(answered)
    return result


def remote(
    recording: Recording,
    agent: Agent,
    to: Target,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    timeout: float,
) -> RRef[Any]:
    """As `Agent.remote`. The event of the call ends when its function has, and the reference's profiling future is
    done then.
    """
    key, node_id = _describe(recording, agent, "remote", to, function)
    arrived: torch.futures.Future[Any] = torch.futures.Future()
    token = secrets.token_hex(16)
    with torch.autograd.profiler.record_function(key) as record:
        call = token, recording.settings, function, *_arguments(agent, function, args, kwargs)
        with unrecorded():
            rref = agent.remote(to, run_and_keep, call, None, timeout)
        ended = record._call_end_callbacks_on_future(arrived)
    rref._set_profiling_future(ended)

    def taken(done: Future[Events]) -> None:
        try:
            recording.add(key, node_id, done.wait())
        except BaseException:
            pass  # the callee has died: then nobody knows what ran there
        arrived.set_result(None)

    def created(done: Future[Any]) -> None:
        try:
            done.wait()
            with unrecorded():  # where the reference was made at once, this is the thread that records
                events = agent.rpc_async(to, take_events, (token,), None, 0)
            events.add_done_callback(taken)
        except BaseException:
            arrived.set_result(None)

    rref._get_future().add_done_callback(created)
    return rref


def _describe(
    recording: Recording, agent: Agent, kind: str, to: Target, function: Callable[..., Any]
) -> tuple[str, int]:
    """The name of the event, and the callee's id."""
    callee = agent.peer(to).record
    recording.node_id = agent.info.id
    return profiling_key(kind, function, agent.info.name, callee.called), callee.id


def _arguments(
    agent: Agent, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if agent.thread.context is not None:
        args, kwargs = as_taken(function, args, kwargs)
    return args, kwargs or {}


def _name_of(function: Any) -> str:
    """As torch names it: `aten::add`, the qualified name of a scripted function, else `__qualname__`."""
    name = getattr(find_operator(function) or function, "_qualified_op_name", None)
    if name is None and isinstance(function, ScriptFunction):
        name = torch._jit_internal._qualified_name(function)
    return name or getattr(function, "__qualname__", None) or type(function).__qualname__


def _following(ended: Any, future: Future[Any]) -> Future[Any]:
    """Settled as the call is, once `ended` is."""
    devices, priority = future._placement()
    result: Future[Any] = Future(devices=devices, priority=priority)

    def settle(_: Any) -> None:
        try:
            with future._streams():
                value, _ = future.value()
                result.set_result(value)
        except BaseException as exc:
            result.set_exception(exc)

    ended.add_done_callback(settle)
    return result


# At the callee.
def run_recorded(
    settings: Settings, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Events]:
    """The function's result, and what ran for it. An `async_execution` keeps this thread until its future is done:
    what it has called ends in this thread's profile.
    """
    return recorded(Settings(*settings), partial(_run, function, args, kwargs))


def run_and_keep(
    token: str,
    settings: Settings,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The function's result; what ran for it is kept for `take_events`."""
    kept = _kept_under(token)
    try:
        result, events = run_recorded(settings, function, args, kwargs)
    except BaseException:
        kept.set_result(Events(0, []))
        raise
    kept.set_result(events)
    return result


@async_execution
def take_events(token: str) -> Future[Events]:
    kept = _kept_under(token)
    kept.add_done_callback(lambda _: _forget(token))
    return kept


def _kept_under(token: str) -> Future[Events]:
    with _lock:
        kept = _kept.get(token)
        if kept is None:
            kept = _kept[token] = Future()
            if len(_kept) > MAX_KEPT:
                _kept.popitem(last=False)
        return kept


def _forget(token: str) -> None:
    with _lock:
        _kept.pop(token, None)


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = function(*args, **kwargs)
    if type(result) is AsyncResult:
        return result.future.wait()
    return result.wait() if hasattr(function, "_wrapped_async_rpc_function") else result
