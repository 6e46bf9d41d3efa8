"""Several reference contexts in one process, joined by ports that deliver inline or when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpcgroup.errors import PeerUnreachableError
from rpcgroup.rref.context import RRefContext
from rpcgroup.rref.port import CallKind, Done, WorkerInfoLike
from rpcgroup.wire.messages import MessageType

__all__ = ["MemoryPort", "RRefNetwork", "Settable", "WorkerName"]


@dataclass(frozen=True)
class WorkerName:
    """Prints as torch's WorkerInfo."""

    name: str
    id: int

    def __str__(self) -> str:
        return f"WorkerInfo(id={self.id}, name={self.name})"


class Settable:
    """A future of a fetch or of a call."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def settle(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error = value, error
        self._done.set()

    def wait(self, timeout: float = 10.0) -> Any:
        """Raises `PeerUnreachableError` where nothing answers in time."""
        if not self._done.wait(timeout):
            raise PeerUnreachableError("no answer")
        if self._error is not None:
            raise self._error
        return self._value


class RRefNetwork:
    """Workers by incarnation. While `held` is set, control messages queue up in `queued` until `deliver`."""

    def __init__(self) -> None:
        self.contexts: dict[int, RRefContext] = {}
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.queued: list[Callable[[], None]] = []
        self.held = False

    def join(self, name: str, incarnation: int) -> RRefContext:
        context = self.contexts[incarnation] = RRefContext(MemoryPort(self, name, incarnation))
        return context

    def crash(self, incarnation: int) -> None:
        """It answers nothing any more; nobody is told of its death."""
        del self.contexts[incarnation]

    def deliver(self) -> None:
        """Everything queued, and what that causes."""
        self.held = False
        while self.queued:
            self.queued.pop(0)()

    def fire_timers(self) -> None:
        """Every timer set so far, whatever its delay."""
        timers, self.timers = self.timers, []
        for _, fn in timers:
            fn()

    def call(self, caller: RRefContext, callee: RRefContext, *rrefs: Any) -> list[Any]:
        """A message with references from one to the other; what the callee's function would get."""
        to, sender = callee.port.incarnation, caller.port.incarnation
        forks = [caller.fork(rref, to).to_wire() for rref in rrefs]
        received, pending = callee.receive(forks, sender)
        errors: list[BaseException | None] = []
        callee.when_confirmed(pending, errors.append)
        if errors and errors[0] is not None:
            raise errors[0]
        return received


class MemoryPort:
    """A `Port` on an `RRefNetwork`."""

    rpc_timeout = 60.0

    def __init__(self, network: RRefNetwork, name: str, incarnation: int) -> None:
        self._network = network
        self.name = name
        self.incarnation = incarnation
        self.woken = 0

    def events_of(self, value: Any) -> None:
        return None

    def send(self, to: int, kind: MessageType, payload: bytes, done: Done) -> None:
        def deliver() -> None:
            peer = self._network.contexts.get(to)
            error: BaseException | None = None
            if peer is None:
                error = PeerUnreachableError(f"no worker {to}")
            else:
                try:
                    peer.on_message(kind, payload, self.incarnation)
                except Exception as exc:
                    error = exc
            done(error)

        if self._network.held:
            self._network.queued.append(deliver)
        else:
            deliver()

    def call_later(self, delay: float, fn: Callable[[], None]) -> None:
        self._network.timers.append((delay, fn))

    def wake(self) -> None:
        self.woken += 1

    def fetch(self, to: int, payload: bytes, timeout: float) -> Settable:
        future = Settable()
        peer = self._network.contexts.get(to)
        if peer is None:
            future.settle(None, PeerUnreachableError(f"no worker {to}"))
        else:
            peer.when_owner_value(payload, self.incarnation, future.settle)
        return future

    def call(
        self,
        kind: CallKind,
        to: WorkerInfoLike,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        timeout: float,
    ) -> Any:
        """Every kind runs at once; the first argument is a reference, as in all calls of this room."""
        caller = self._network.contexts[self.incarnation]
        callee = next(context for context in self._network.contexts.values() if context.port.name == to.name)
        received = self._network.call(caller, callee, args[0])
        result = fn(received[0], *args[1:], **kwargs)
        if kind != "async":
            return result
        future = Settable()
        future.settle(result, None)
        return future

    def backward(self, context_id: int, root: Any, retain_graph: bool) -> None:
        raise NotImplementedError

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        return event.wait(timeout)

    def worker_info(self, incarnation: int, name: str) -> WorkerName:
        return WorkerName(name, incarnation)

    def worker_id(self, incarnation: int) -> int:
        return incarnation
