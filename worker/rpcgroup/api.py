"""The module-level API: torch's names, over the one group that this process is a member of."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final, TypeVar

from rpcgroup.agent.agent import UNSET_TIMEOUT, Agent
from rpcgroup.agent.members import Target
from rpcgroup.agent.options import AgentOptions
from rpcgroup.devices import device_count
from rpcgroup.environment import Environment, host_identity
from rpcgroup.errors import GroupError, NotInitializedError
from rpcgroup.futures import Future
from rpcgroup.group import Group
from rpcgroup.meeting import meet, patience
from rpcgroup.membership.record import MemberRecord, MemberState
from rpcgroup.membership.rendezvous import DrainRequest
from rpcgroup.membership.store.client import Store
from rpcgroup.options import DEFAULT_INIT_METHOD, RpcBackendOptions, agent_options, as_options, device_options
from rpcgroup.rref.rref import RRef
from rpcgroup.worker_info import WorkerInfo

__all__ = [
    "get_worker_info",
    "init_rpc",
    "on_drain",
    "progress",
    "remote",
    "rpc_async",
    "rpc_sync",
    "shutdown",
]

T = TypeVar("T")
SIGTERM_GRACE: Final = 25.0
"""Seconds that a SIGTERM gives: Kubernetes kills 30 s after it, by default."""

_log = logging.getLogger(__name__)
_lock = threading.Lock()  # guards _group while it is made or ended
_group: Group | None = None
_sigterm_handler: Callable[[int, FrameType | None], None] | None = None
"""That of the latest group that listens."""


def _forget_group() -> None:
    global _group
    _group = None


os.register_at_fork(after_in_child=_forget_group)


def init_rpc(
    name: str | None = None,
    backend: object = None,
    rank: int = -1,
    world_size: int | None = None,
    rpc_backend_options: AgentOptions | RpcBackendOptions | None = None,
    *,
    init_method: str | None = None,
    store: Store | None = None,
    role: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Group:
    """Join a group; returns when this worker is a member and serves calls.

    In a pod and under `rpcgroup run` everything comes from the environment. Elsewhere `name` is the worker's name,
    and `init_method` is one of

    - `etcd://HOST:PORT[,HOST:PORT]/NAMESPACE/GROUP`. With `world_size` it returns when that many members are there.
    - those of torch: `file://PATH`, `tcp://HOST:PORT`, `env://` (the default where MASTER_ADDR is set); or `store`,
      a store of `torch.distributed`. With `world_size` the group is static: each member gives its `rank`, all come,
      and if one of them fails, all fail for the same reason. They have the options' `rpc_timeout` to come, and 5 s
      at least. Without `world_size` the group is dynamic.

    `init_method` may stand in `rpc_backend_options` as well. Raises `JoinError`, `MemberExistsError`,
    `RendezvousUnavailableError`, and `GroupError` for what is missing.
    """
    global _group
    with _lock:
        if _group is not None:
            raise GroupError(f"RPC is already initialized: this process is {_group.name!r}")
        environment = Environment.read()
        backend_options = as_options(rpc_backend_options)
        url = _init_method(init_method, backend_options, environment)
        if store is None and not url:
            raise GroupError(
                "init_rpc does not know where the group meets: give init_method='etcd://HOST:PORT/NAMESPACE/GROUP', "
                "start this program by `rpcgroup run` or in an RPCGroup's pod, or set MASTER_ADDR and MASTER_PORT"
            )
        known_as = name or environment.name
        if not known_as:
            raise GroupError("init_rpc needs the worker's name: give name=..., or set RPCGROUP_NAME")
        name = known_as
        if environment.compat and environment.name and store is None and url == environment.rendezvous:
            # One rank a pod: who runs it knows its worker by the pod's name, whatever the program calls it.
            name = environment.name
            _require_one_rank(rank, world_size)
        options = agent_options(backend_options)
        timeout = patience(options.rpc_timeout)
        meeting = meet(url, store, rank, world_size or None, timeout)
        try:
            agent = meeting.make_agent(name, environment, options)
            record = _record(agent, known_as, environment, role, meeting.rank, labels or {}, backend_options)
            group = Group(agent, meeting.rendezvous, environment.stats_interval, meeting.world_size)
        except BaseException as exc:
            meeting.give_up(name, exc)
            raise
        if group.is_static:
            group.join(record, timeout)
        else:
            group.join(record)
        _group = group  # before the first call of another: what it runs may call others by this module
        group.serve()
    group.when_drained_unheard = _leave_and_exit
    if not group.is_static:  # its members end together: one that is asked to end cannot wait for the others
        _listen_to_sigterm(group)
    if world_size and not group.is_static:
        try:
            group.wait_for(world_size, timeout=options.rpc_timeout or None)
        except GroupError:
            shutdown(graceful=False)
            raise
    return group


def _require_one_rank(rank: int, world_size: int | None) -> None:
    """Of a program for torch in a pod; it may also start ranks by itself, as on a laptop, which meet elsewhere."""
    mine, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if (rank != -1 and mine not in ("", str(rank))) or (world_size and size not in ("", str(world_size))):
        raise GroupError(
            f"this pod is rank {mine} of {size}, and its program joins as rank {rank} of {world_size}: a pod is one "
            "rank of the group. Ask for as many replicas as there are ranks, and let the program read RANK and "
            "WORLD_SIZE; or give ranks that one pod starts a place of their own: init_method='tcp://localhost:PORT'"
        )


def _init_method(given: str | None, options: object, environment: Environment) -> str:
    """What was chosen wins over what surrounds the program, and that over torch's default."""
    in_options = getattr(options, "init_method", None) or ""
    if in_options == DEFAULT_INIT_METHOD:
        in_options = ""
    default = DEFAULT_INIT_METHOD if os.environ.get("MASTER_ADDR") else ""
    return given or in_options or environment.rendezvous or default


def shutdown(graceful: bool = True, timeout: float | None = None) -> None:
    """Leave the group; graceful: once the calls under way are through, and in a static group once all members have
    come here. Another `init_rpc` may follow.

    Raises `NotInitializedError` where there is nothing to shut down, and `GroupError` where members of a static
    group did not come within `timeout` seconds; this worker has left then, too.
    """
    global _group
    group = _current()
    try:
        group.leave(graceful, timeout)
    finally:
        with _lock:
            if _group is group:
                _group = None
        _stop_listening_to_sigterm()


def rpc_sync(
    to: Target,
    func: Callable[..., T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    timeout: float = UNSET_TIMEOUT,
) -> T:
    """Call `func` on `to` and return its result.

    `to` is a name, an id or a `WorkerInfo`; `timeout` in seconds, -1 = the default, 0 = none. Raises what the
    function raised, in its own type; `CallTimeoutError`, `PeerUnreachableError`, `UnknownWorkerError`,
    `SerializationError`, `NotInitializedError`.
    """
    group = _group
    if group is None:
        raise _not_initialized()
    result: T = group.agent.rpc_sync(to, func, args, kwargs, timeout)
    return result


def rpc_async(
    to: Target,
    func: Callable[..., T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    timeout: float = UNSET_TIMEOUT,
) -> Future[T]:
    """As `rpc_sync`, without waiting: a future that can be waited for, awaited, chained and cancelled."""
    group = _group
    if group is None:
        raise _not_initialized()
    return group.agent.rpc_async(to, func, args, kwargs, timeout)


def remote(
    to: Target,
    func: Callable[..., T],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    timeout: float = UNSET_TIMEOUT,
) -> RRef[T]:
    """As `rpc_async`, but the result stays with the callee: a reference to it."""
    return _current().agent.remote(to, func, args, kwargs, timeout)


def get_worker_info(worker_name: str | None = None) -> WorkerInfo:
    """This worker, or the member of that name."""
    agent = _current().agent
    if worker_name is None:
        return agent.info
    record = agent.peer(worker_name).record
    return WorkerInfo(record.called, record.id, record.incarnation)


def on_drain(callback: Callable[[DrainRequest], None]) -> None:
    """See `Group.on_drain`."""
    _current().on_drain(callback)


def progress(**values: Any) -> None:
    """See `Group.progress`."""
    _current().progress(**values)


def _current() -> Group:
    if _group is None:
        raise _not_initialized()
    return _group


def _not_initialized() -> NotInitializedError:
    return NotInitializedError("RPC has not been initialized, or has been shut down: call init_rpc first")


def _record(
    agent: Agent,
    known_as: str,
    environment: Environment,
    role: str | None,
    rank: int,
    labels: Mapping[str, str],
    options: object,
) -> MemberRecord:
    devices, device_maps = device_options(options)
    return MemberRecord(
        name=agent.name,
        role=role or environment.role or MemberRecord.role,
        id=rank,
        address=agent.address,
        host=host_identity(),
        devices=devices,
        device_count=device_count(),
        device_maps=device_maps,
        role_device_maps=environment.role_device_maps,
        state=MemberState.READY,
        labels=dict(labels),
        pod_name=environment.pod_name,
        pod_uid=environment.pod_uid,
        known_as="" if known_as == agent.name else known_as,
    )


def _listen_to_sigterm(group: Group) -> None:
    """SIGTERM asks this worker to leave, unless the program has a handler of its own."""
    global _sigterm_handler
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        if _group is not group:
            if group.is_drained:
                raise SystemExit(0)
            # Another thread has shut down, which could not do this.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        request = DrainRequest(time.time() + SIGTERM_GRACE, "SIGTERM")
        group.agent.monitor.call_soon(lambda: group.drain(request))

    _sigterm_handler = on_sigterm
    signal.signal(signal.SIGTERM, on_sigterm)


def _stop_listening_to_sigterm() -> None:
    """Where the program has not taken it over; only the main thread can."""
    mine = _sigterm_handler is not None and signal.getsignal(signal.SIGTERM) is _sigterm_handler
    if mine and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_and_exit(request: DrainRequest) -> None:
    """A drained program that does not listen for it: leave in good order, then end the process as SIGTERM does."""
    _log.info("leaving the group: no on_drain callback says otherwise")
    try:
        shutdown(graceful=True)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
