"""The backend FAULTY_TENSORPIPE: this package with messages that fail or come late, by the name of their type.

Importing this module registers it. Faults are made at the sender, before anything is sent; what is not listed
goes its usual way. Source: torch's `torch.distributed.rpc._testing`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import torch

from rpcgroup import api
from rpcgroup.agent.autograd_port import encode_request
from rpcgroup.agent.call import Call
from rpcgroup.agent.link import MAX_TIMEOUT_MS, Link
from rpcgroup.agent.options import AgentOptions
from rpcgroup.autograd.context import DistAutogradContext
from rpcgroup.backend_registry import register_backend
from rpcgroup.devices import DeviceMap
from rpcgroup.errors import RpcGroupError
from rpcgroup.group import Group
from rpcgroup.options import (
    DEFAULT_INIT_METHOD,
    DEFAULT_NUM_WORKER_THREADS,
    DEFAULT_RPC_TIMEOUT,
    RpcBackendOptions,
)
from rpcgroup.rref.ids import ForkData, RRefId
from rpcgroup.rref.messages import decode_fetch
from rpcgroup.wire.frames import pack_frame
from rpcgroup.wire.messages import MessageType
from rpcgroup.wire.scripts import find_operator, is_scripted

__all__ = ["FaultyTensorPipeRpcBackendOptions", "InjectedFaultError", "MessageFaults"]

SCRIPT_KINDS: Final = {
    MessageType.PYTHON_CALL: MessageType.SCRIPT_CALL,
    MessageType.PYTHON_REMOTE_CALL: MessageType.SCRIPT_REMOTE_CALL,
}
"""What a call is where it names a builtin operator or a scripted function."""

C = TypeVar("C", bound=Call)


class InjectedFaultError(RpcGroupError, RuntimeError):
    """The message was not sent, because it was asked for that it fails."""


class MessageFaults:
    """What becomes of an agent's messages; `agent_options` puts it in.

    Each message of a type in `to_fail` fails the first `fail_sends` times that it is sent: the same is one to the
    same worker, with the same function or the same content; a creation by `remote` is always one of its own.
    Each of a type in `to_delay` goes out that many seconds late. A call within an autograd context has its own type
    here, not that of its envelope.
    """

    def __init__(self, to_fail: Iterable[str], to_delay: Mapping[str, float], fail_sends: int) -> None:
        self._to_fail = {_message_type(name) for name in to_fail}
        self._to_delay = {_message_type(name): seconds for name, seconds in to_delay.items()}
        self._fail_sends = fail_sends
        self._lock = threading.Lock()  # guards _failed, _script_rrefs
        self._failed: dict[tuple[Any, ...], int] = {}
        self._script_rrefs: set[RRefId] = set()

    def delay(self, kind: MessageType) -> float:
        """Seconds."""
        return self._to_delay.get(kind, 0.0)

    def fails(self, kind: MessageType, to: Link, message: object) -> bool:
        """Whether this sending of it does."""
        if kind not in self._to_fail:
            return False
        if kind in (MessageType.PYTHON_REMOTE_CALL, MessageType.SCRIPT_REMOTE_CALL):
            return self._fail_sends > 0
        key = kind, to.agent.name, to.peer.incarnation, message
        with self._lock:
            failed = self._failed.get(key, 0)
            self._failed[key] = failed + 1
        return failed < self._fail_sends

    def kind_of_fetch(self, rref_id: RRefId) -> MessageType:
        with self._lock:
            is_script = rref_id in self._script_rrefs
        return MessageType.SCRIPT_RREF_FETCH_CALL if is_script else MessageType.PYTHON_RREF_FETCH_CALL

    def created_by_script(self, rref_id: RRefId) -> None:
        with self._lock:
            self._script_rrefs.add(rref_id)


class FaultyLink(Link):
    """A link whose messages pass `faults` first."""

    def __init__(self, faults: MessageFaults, *args: Any) -> None:
        super().__init__(*args)
        self._faults = faults

    def call(
        self,
        kind: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        timeout: float,
        call: C,
        context: DistAutogradContext | None = None,
    ) -> C:
        named = MessageType(kind)
        if _is_script(function):
            named = SCRIPT_KINDS.get(named, named)
        if named is MessageType.SCRIPT_REMOTE_CALL:
            self._faults.created_by_script(ForkData.from_wire(args[0]).rref_id)
        return super().call(named, function, args, kwargs, timeout, call, context)

    def send(
        self,
        kind: int,
        number: int,
        values: tuple[Any, ...],
        flags: int,
        timeout: float,
        call: C,
        context: DistAutogradContext | None = None,
    ) -> C:
        named = MessageType(kind)
        if named is MessageType.PYTHON_RREF_FETCH_CALL:
            named = self._faults.kind_of_fetch(decode_fetch(values[0]))
        if self._faults.fails(named, self, _content(number, values)):
            return self._fail(named, call)
        delay = self._faults.delay(named)
        if delay:
            return self._send_late(delay, named, number, values, flags, timeout, call, context)
        return super().send(named, number, values, flags, timeout, call, context)

    def _fail(self, kind: MessageType, call: C) -> C:
        call.link = self
        call.id = next(self._ids)
        error = InjectedFaultError(f"Send attempt failed intentionally for {kind.name} to {self.peer.name}")
        self._fail_call(call, error)
        return call

    def _send_late(
        self,
        delay: float,
        kind: MessageType,
        number: int,
        values: tuple[Any, ...],
        flags: int,
        timeout: float,
        call: C,
        context: DistAutogradContext | None,
    ) -> C:
        """As `send`, but for the writing. The call is there from now on: it can end before it is written."""
        wrapped: int = kind
        if context is not None:
            wrapped, (form, body, buffers, _), call.withdraw = encode_request(self, context, kind, values)
        else:
            form, body, buffers, _ = self._codec.encode(values, self.peer.forks, self.by_value)
        call.link = self
        call.id = id = next(self._ids)
        call.timeout_ms = timeout_ms = min(max(1, int(timeout * 1000)), MAX_TIMEOUT_MS) if timeout else 0
        call.deadline = time.monotonic() + timeout if timeout else 0.0
        self.pending[id] = call
        self.activity = id
        if self.failure is not None and self.pending.pop(id, None) is not None:
            raise self._unsent(call)

        def write() -> None:
            channel = self.channel
            ack = channel.acknowledgement()
            channel.queue(pack_frame(wrapped, flags | form, id, number, timeout_ms, ack, body, buffers))
            channel.flush()

        monitor = self._monitor
        monitor.wake()
        if timeout:
            monitor.expect(call.deadline)
        monitor.call_later(delay, write)
        return call


class FaultyTensorPipeRpcBackendOptions(RpcBackendOptions):
    """`messages_to_fail` are names of `MessageType`, `messages_to_delay` such names -> seconds; a message that is to
    fail does so `num_fail_sends` times. Raises `ValueError` for a name that is no message type's.
    """

    def __init__(
        self,
        num_worker_threads: int = DEFAULT_NUM_WORKER_THREADS,
        rpc_timeout: float = DEFAULT_RPC_TIMEOUT,
        init_method: str = DEFAULT_INIT_METHOD,
        messages_to_fail: Iterable[str] = (),
        messages_to_delay: Mapping[str, float] | None = None,
        num_fail_sends: int = 0,
    ) -> None:
        super().__init__(rpc_timeout, init_method)
        self.num_worker_threads = num_worker_threads
        self.device_maps: dict[str, DeviceMap] = {}
        self.devices: list[torch.device] = []
        self.messages_to_fail = list(messages_to_fail)
        self.messages_to_delay = dict(messages_to_delay or {})
        self.num_fail_sends = num_fail_sends
        self._faults()

    def agent_options(self) -> AgentOptions:
        return AgentOptions(
            rpc_timeout=self.rpc_timeout,
            num_worker_threads=self.num_worker_threads,
            make_link=partial(FaultyLink, self._faults()),
        )

    def _faults(self) -> MessageFaults:
        return MessageFaults(self.messages_to_fail, self.messages_to_delay, self.num_fail_sends)


def _message_type(name: str) -> MessageType:
    try:
        return MessageType[name]
    except KeyError:
        raise ValueError(f"No mapping to rpc::MessageType exists for {name}") from None


def _is_script(function: Callable[..., Any]) -> bool:
    return is_scripted(function) or find_operator(function) is not None


def _content(number: int, values: tuple[Any, ...]) -> object:
    """What tells a message from others of its type: the function that it calls, or what it says."""
    first = values[0] if values else None
    return number or (first if isinstance(first, bytes | int) else None)


def _construct_options(
    rpc_timeout: float, init_method: str, **kwargs: Any
) -> FaultyTensorPipeRpcBackendOptions:
    return FaultyTensorPipeRpcBackendOptions(rpc_timeout=rpc_timeout, init_method=init_method, **kwargs)


def _init(store: Any, name: str, rank: int, world_size: int | None, rpc_backend_options: Any) -> Group:
    if not isinstance(rpc_backend_options, FaultyTensorPipeRpcBackendOptions):
        raise TypeError(
            f"`rpc_backend_options` must be a `FaultyTensorPipeRpcBackendOptions`. {rpc_backend_options}"
        )
    return api.init_rpc(
        name,
        rank=rank,
        world_size=world_size,
        rpc_backend_options=rpc_backend_options,
        store=store,
    )


register_backend("FAULTY_TENSORPIPE", _construct_options, _init)
