"""`torch.distributed.rpc.api`: calls, gatherings and the end, over the group of this process.

Programs and tests put functions of their own in the place of `_wait_all_workers`, `_broadcast_to_followers` and
others: each is looked up here when it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, TypeVar

import torch

from rpcgroup import api
from rpcgroup.agent.agent import Agent
from rpcgroup.agent.call_future import CallFuture
from rpcgroup.compat.agent import RpcAgent, TensorPipeAgent
from rpcgroup.compat.rpc.constants import DEFAULT_SHUTDOWN_TIMEOUT, UNSET_RPC_TIMEOUT
from rpcgroup.compat.rpc.gathering import AllGatherStates, Gatherings, wait_for
from rpcgroup.compat.rpc.internal import (
    PythonUDF,
    _internal_rpc_pickler,
    _run_function,
    deserialize,
)
from rpcgroup.errors import (
    CallTimeoutError,
    DrainedError,
    NotInitializedError,
    PeerUnreachableError,
    RRefError,
)
from rpcgroup.futures import Future
from rpcgroup.rref.rref import RRef
from rpcgroup.wire.scripts import ScriptFunction, find_operator, require_arguments
from rpcgroup.worker_info import WorkerInfo

__all__ = [
    "AllGatherStates",
    "RRef",
    "get_worker_info",
    "remote",
    "rpc_async",
    "rpc_sync",
    "shutdown",
]

PyRRef = RRef
REFERENCES_TIMEOUT: Final = 100.0
"""Seconds for owners to answer that the references held here are deleted."""

_F = TypeVar("_F", bound=Callable[..., Any])
logger = logging.getLogger(__name__)

_ignore_rref_leak = True
"""Whether references that are left at shutdown are only logged."""
_default_pickler: Any = _internal_rpc_pickler
_current: RpcAgent | None = None
"""The agent that was set last; `_get_current_rpc_agent` is who knows whether it still counts."""


# -- the agent ------------------------------------------------------------------------------------------------


def _is_current_rpc_agent_set() -> bool:
    if isinstance(_current, TensorPipeAgent) or _current is None:
        return api._group is not None
    return True


def _get_current_rpc_agent() -> Any:
    """The agent of this process; raises `NotInitializedError`."""
    group = api._group
    if isinstance(_current, TensorPipeAgent) and _current.group is group:
        return _current
    if group is not None:  # made by rpcgroup's own init_rpc
        _init_rpc_states(TensorPipeAgent(group))
    if _current is None or (group is None and isinstance(_current, TensorPipeAgent)):
        raise NotInitializedError(
            "Current RPC agent is not set! Did you initialize the RPC framework (e.g. by calling `rpc.init_rpc`)?"
        )
    return _current


def _set_and_start_rpc_agent(agent: RpcAgent) -> None:
    global _current
    _current = agent


def _reset_current_rpc_agent() -> None:
    global _current
    _current = None


def _init_rpc_states(agent: Any) -> None:
    global _ALL_WORKER_NAMES
    _ALL_WORKER_NAMES = {info.name for info in agent.get_worker_infos()}
    if isinstance(agent, TensorPipeAgent):
        agent.group.agent.references.start_async = _start_async
    elif _is_current_rpc_agent_set():
        return  # a backend's init has set it
    _set_and_start_rpc_agent(agent)


def _require_initialized(func: _F) -> _F:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not _is_current_rpc_agent_set():
            raise _not_initialized()
        return func(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def _not_initialized() -> NotInitializedError:
    return NotInitializedError("RPC has not been initialized. Call torch.distributed.rpc.init_rpc first.")


@_require_initialized
def get_worker_info(worker_name: str | int | None = None) -> WorkerInfo:
    """This worker, or the member of that name or id."""
    info: WorkerInfo = _get_current_rpc_agent().get_worker_info(worker_name)
    return info


def get_rpc_timeout() -> float:
    """Seconds, of a call that names none."""
    seconds: float = _get_current_rpc_agent().rpc_timeout
    return seconds


def _set_rpc_timeout(seconds: float) -> None:
    _get_current_rpc_agent().rpc_timeout = seconds


def enable_gil_profiling(enabled: bool) -> None:
    _get_current_rpc_agent().enable_gil_profiling(enabled)


# -- calls ----------------------------------------------------------------------------------------------------


def rpc_sync(
    to: Any, func: Any, args: Any = None, kwargs: Any = None, timeout: float = UNSET_RPC_TIMEOUT
) -> Any:
    """Call `func` on `to`, a name, an id or a `WorkerInfo`, and return its result; `timeout` in seconds."""
    agent, func, args, kwargs = _prepare(to, func, args, kwargs)
    return agent.rpc_sync(to, func, args, kwargs, timeout)


def rpc_async(
    to: Any, func: Any, args: Any = None, kwargs: Any = None, timeout: float = UNSET_RPC_TIMEOUT
) -> Any:
    """As `rpc_sync`, without waiting: a future."""
    agent, func, args, kwargs = _prepare(to, func, args, kwargs)
    future: Future[Any]
    try:
        future = agent.rpc_async(to, func, args, kwargs, timeout)
        if isinstance(future, CallFuture):
            future.materialize()  # programs hand it to torch's C++: to scripted functions, to hooks of DDP
    except (DrainedError, PeerUnreachableError) as exc:  # torch's learns it later
        future = _failed(exc)
    if hasattr(_thread_local_var, "future_list"):
        _thread_local_var.future_list.append(future)
    return future


def remote(
    to: Any, func: Any, args: Any = None, kwargs: Any = None, timeout: float = UNSET_RPC_TIMEOUT
) -> Any:
    """As `rpc_async`, but the result stays with the callee: a reference to it."""
    agent, func, args, kwargs = _prepare(to, func, args, kwargs)
    try:
        return agent.remote(to, func, args, kwargs, timeout)
    except (DrainedError, PeerUnreachableError) as exc:  # torch's learns it by using the reference
        rref = agent.references.orphan(*_identify(agent, to))
        rref._future = _failed(exc)
        return rref


def _identify(agent: Agent, to: str | int | WorkerInfo) -> tuple[int, str]:
    """The incarnation of a worker, 0 of one that is no member any more, and what it is called."""
    try:
        record = agent.peer(to).record
    except (DrainedError, PeerUnreachableError):
        return 0, to.name if isinstance(to, WorkerInfo) else str(to)
    return record.incarnation, record.called


def _start_async(start: Callable[[], Future[Any]]) -> Future[Any]:
    """As `rpc_async`, of the uses of a reference."""
    try:
        future = start()
        if isinstance(future, CallFuture):
            future.materialize()
    except (DrainedError, PeerUnreachableError) as exc:
        future = _failed(exc)
    if hasattr(_thread_local_var, "future_list"):
        _thread_local_var.future_list.append(future)
    return future


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _prepare(to: Any, func: Any, args: Any, kwargs: Any) -> tuple[Agent, Any, Any, Any]:
    """The agent, what is to be called, and with what."""
    group = api._group
    if group is None:
        raise _not_initialized()
    if not callable(func):
        raise TypeError("function should be callable.")
    if not isinstance(to, str | int | WorkerInfo):
        raise ValueError(f"Cannot get WorkerInfo from name {to}")
    args = tuple(args) if args else ()
    operator = find_operator(func)
    if operator is not None:
        func = operator
    elif isinstance(func, ScriptFunction):
        require_arguments(func, args)
    elif _default_pickler is not _internal_rpc_pickler:
        serialized, tensors = _default_pickler.serialize(PythonUDF(func, args, kwargs or {}))
        func, args, kwargs = _run_serialized, (serialized, tensors), None
    return group.agent, func, args, kwargs or None


def _run_serialized(serialized: bytes, tensors: list[Any]) -> Any:
    """At the callee: a call that a program's own pickler has serialized."""
    return _run_function(deserialize(serialized, tensors))


@contextlib.contextmanager
def _use_rpc_pickler(rpc_pickler: Any) -> Iterator[None]:
    """Let `rpc_pickler` serialize the calls that are made inside."""
    global _default_pickler
    _default_pickler = rpc_pickler
    try:
        yield
    finally:
        _default_pickler = _internal_rpc_pickler


_thread_local_var = threading.local()
"""`future_list` inside `_wait_all`."""


@contextlib.contextmanager
def _wait_all() -> Iterator[None]:
    """Wait at the end for all futures that `rpc_async` has returned inside."""
    _thread_local_var.future_list = []
    try:
        yield
    finally:
        try:
            torch.futures.wait_all(_thread_local_var.future_list)
        finally:
            del _thread_local_var.future_list


# -- gatherings -----------------------------------------------------------------------------------------------


_ALL_WORKER_NAMES: set[str] = set()
"""Who was there when `init_rpc` returned."""
_gatherings = Gatherings()


def _gather_to_leader(sequence_id: str, worker_name: str, obj: Any, worker_names: Any = None) -> None:
    """On the leader, by each: here is mine."""
    _gatherings.give(sequence_id, worker_name, obj, worker_names or _ALL_WORKER_NAMES)


def _broadcast_to_followers(sequence_id: str, objects_map: dict[str, Any]) -> None:
    """On each other, by the leader: these are all."""
    _gatherings.take(sequence_id, objects_map)


def _deliver(sequence_id: str, objects_map: dict[str, Any]) -> None:
    """What the leader calls: whoever has a `_broadcast_to_followers` of his own has it run."""
    _broadcast_to_followers(sequence_id, objects_map)


@_require_initialized
def _all_gather(
    obj: Any, worker_names: Collection[str] | None = None, timeout: float = UNSET_RPC_TIMEOUT
) -> dict[str, Any]:
    """What each of these workers has given here, by name: all of the group by default. Blocks until all have come.

    Raises `RuntimeError` on the worker with the smallest name, who leads, where the others do not answer in
    `timeout` seconds, and on the others where the leader does not; `PeerUnreachableError` where somebody has died or
    left, naming who has.
    """
    agent = _get_current_rpc_agent()
    names = set(worker_names or _ALL_WORKER_NAMES)
    leader, own = min(names), agent.get_worker_info().name
    sequence_id, state = _gatherings.begin(names)
    unset = timeout == UNSET_RPC_TIMEOUT
    rpc_timeout = agent.rpc_timeout if unset else timeout
    signal_timeout = None if unset or timeout == DEFAULT_SHUTDOWN_TIMEOUT else timeout

    if own == leader:
        _gather_to_leader(sequence_id, own, obj, names)
    else:
        rpc_sync(leader, _gather_to_leader, (sequence_id, own, obj, names), timeout=rpc_timeout)

    def awaited() -> list[str]:
        return _gatherings.missing(state, names) if own == leader else [leader]

    try:
        in_time = wait_for(state.proceed_signal, signal_timeout, awaited, api._group)
        absent = _gatherings.missing(state, names)
        if own == leader:
            _tell_followers(sequence_id, state, sorted(names - {leader, *absent}), rpc_timeout)
        if absent:
            who = absent if own in state.gathered_objects else leader
            error = PeerUnreachableError if in_time else CallTimeoutError
            raise error(
                f"_all_gather: no word from {who}, {'dead or gone' if in_time else f'in {timeout:.2f} s'}"
            )
    finally:
        _gatherings.end(sequence_id)
    return state.gathered_objects


def _tell_followers(sequence_id: str, state: AllGatherStates, names: list[str], timeout: float) -> None:
    arguments = (sequence_id, state.gathered_objects)
    futures = {name: rpc_async(name, _deliver, arguments, timeout=timeout) for name in names}
    errors = []
    for name, future in futures.items():
        try:
            future.wait()
        except RuntimeError as exc:
            errors.append((name, exc))
    if errors:
        raise RuntimeError(
            f"Followers {[name for name, _ in errors]} timed out in _all_gather after {timeout:.2f} seconds. "
            f"The first exception is {errors[0][1]}"
        )


@_require_initialized
def _barrier(worker_names: Collection[str]) -> None:
    """Block until all of these workers are here."""
    try:
        _all_gather(None, set(worker_names))
    except RuntimeError:
        logger.exception("Failed to complete barrier")


@_require_initialized
def _wait_all_workers(timeout: float = DEFAULT_SHUTDOWN_TIMEOUT) -> None:
    """Block until all workers of the group who live are here; `timeout` in seconds, 0 = none."""
    agent = _get_current_rpc_agent()
    meets = isinstance(agent, TensorPipeAgent) and agent.is_static_group
    try:
        _all_gather(None, agent.meet(timeout) if meets else None, timeout)
    except (DrainedError, PeerUnreachableError) as exc:
        if not meets:
            raise
        logger.info("somebody has died since all were here: %s", exc)
    except RuntimeError:
        logger.exception("Failed to respond to 'Shutdown Proceed' in time")
        raise


# -- the end --------------------------------------------------------------------------------------------------


@_require_initialized
def shutdown(graceful: bool = True, timeout: float = DEFAULT_SHUTDOWN_TIMEOUT) -> None:
    """Leave the group. Graceful: when all have come here, the references held here are deleted and no work is under
    way anywhere; in a dynamic group when this worker's own work is through. `timeout` in seconds, 0 = none.
    """
    if not graceful:
        _finalize_shutdown()
        return
    try:
        agent = _get_current_rpc_agent()
        if not isinstance(agent, TensorPipeAgent) or agent.is_static_group:
            _wait_all_workers(timeout)
            _delete_all_user_and_unforked_owner_rrefs()
        agent.join(shutdown=True, timeout=timeout)
    finally:
        _finalize_shutdown()


def _finalize_shutdown() -> None:
    try:
        _destroy_rref_context(_ignore_rref_leak)
    finally:
        _get_current_rpc_agent().shutdown()
        _cleanup_python_rpc_handler()
        _reset_current_rpc_agent()


def _delete_all_user_and_unforked_owner_rrefs(timeout: float = REFERENCES_TIMEOUT) -> None:
    """Delete the references held here, and wait until their owners know."""
    if api._group is not None:
        api._group.agent.references.shutdown(timeout)


def _destroy_rref_context(ignore_rref_leak: bool) -> None:
    """Raises `RRefError` where references are left, unless that is to be ignored."""
    leaks = api._group.agent.references.leaks() if api._group is not None else []
    if leaks and not ignore_rref_leak:
        raise RRefError("\n".join(leaks))
    if leaks:
        logger.info("%d references were left at shutdown; the first: %s", len(leaks), leaks[0])


def _cleanup_python_rpc_handler() -> None:
    """torch drops here what its C++ part has imported."""


def _rref_context_get_debug_info() -> dict[str, str]:
    if api._group is None:
        raise _not_initialized()
    return dict(api._group.agent.references.debug_info())


def _to_worker_info(to: Any) -> WorkerInfo:
    if isinstance(to, WorkerInfo):
        return to
    if isinstance(to, str | int):
        return get_worker_info(to)
    raise ValueError(f"Cannot get WorkerInfo from name {to}")


def _get_should_profile() -> bool:
    """Whether calls are to be recorded: by the legacy profiler, as in torch."""
    legacy = torch._C._profiler.ActiveProfilerType.LEGACY
    return torch.autograd._profiler_enabled() and torch._C._autograd._profiler_type() == legacy  # type: ignore[attr-defined]
