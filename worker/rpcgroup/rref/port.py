"""What the references need of the agent, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import Any, Literal, Protocol

from rpcgroup.cuda.events import Events
from rpcgroup.wire.messages import MessageType

__all__ = ["CallKind", "Done", "FutureLike", "Port", "WorkerInfoLike"]

CallKind = Literal["sync", "async", "remote"]
Done = Callable[[BaseException | None], None]


class WorkerInfoLike(Protocol):
    """A worker as `owner()` shows it; its `str` stands in error texts."""

    @property
    def name(self) -> str: ...

    @property
    def id(self) -> int: ...


class FutureLike(Protocol):
    """What `Port.fetch` returns."""

    def wait(self) -> Any: ...


class Port(Protocol):
    """One worker's way to the others. Every method may be called from any thread, and is called with no lock
    held.
    """

    incarnation: int
    name: str

    @property
    def rpc_timeout(self) -> float:
        """Seconds; what a timeout of -1 means. 0: no limit."""
        ...

    def send(self, to: int, kind: MessageType, payload: bytes, done: Done) -> None:
        """Send a control message to the worker of incarnation `to`, at most once; never blocks, never raises.

        `done` is called exactly once, inline or from another thread: with None when the peer's `on_message`
        has returned, with an `RRefError` when it raised one, with anything else when the outcome is unknown
        or the message did not leave. The context sends again with backoff until `member_died(to)`, so the
        agent must report the death of every incarnation that is asked for and is not, or no longer, in the
        group.
        """
        ...

    def call_later(self, delay: float, fn: Callable[[], None]) -> None:
        """Run `fn` once after `delay` seconds, on any thread; never after the agent has closed."""
        ...

    def wake(self) -> None:
        """Ask for `RRefContext.reap()` soon.

        Called by the garbage collector inside any code, a holder of any lock included: must not lock, block
        or raise. Setting a flag that the monitor looks at, or `SimpleQueue.put`, are safe.
        """
        ...

    def fetch(self, to: int, payload: bytes, timeout: float) -> FutureLike:
        """Ask the owner for a value (`RRefContext.when_owner_value` answers there).

        `timeout` in seconds, as everywhere: -1 = the default, 0 = none. The future's `wait` returns the
        decoded value or raises what the owner reported.
        """
        ...

    def call(
        self,
        kind: CallKind,
        to: WorkerInfoLike,
        fn: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        timeout: float,
    ) -> Any:
        """`rpc_sync`, `rpc_async` or `remote` of the group: the result, a future, or an RRef."""
        ...

    def events_of(self, value: Any) -> Events | None:
        """Behind what this thread's current streams have to do for its tensors on devices; None without any."""
        ...

    def backward(self, context_id: int, root: Any, retain_graph: bool) -> None:
        """A backward pass of distributed autograd, from a tensor of this worker."""
        ...

    def wait(self, event: Event, timeout: float | None) -> bool:
        """Block this thread until `event` is set; false where `timeout` seconds (None: no limit) pass first.

        One of the agent's blocking points: a reactor that runs this hands over first.
        """
        ...

    def worker_info(self, incarnation: int, name: str) -> WorkerInfoLike:
        """The member; where it is gone, one made of what is known. Does not raise."""
        ...

    def worker_id(self, incarnation: int) -> int:
        """The worker's id as users see it; the incarnation where it is not known. Does not raise."""
        ...
