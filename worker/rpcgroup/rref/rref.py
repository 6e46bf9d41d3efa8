"""`RRef`: a reference to a value that lives on some worker, as users see it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import torch

from rpcgroup.errors import NotInitializedError, RRefError
from rpcgroup.rref.backward import backward
from rpcgroup.rref.cell import Cell
from rpcgroup.rref.ids import RRefId
from rpcgroup.rref.port import CallKind, WorkerInfoLike
from rpcgroup.rref.transitions import UserState
from rpcgroup.rref.user import UserFork
from rpcgroup.rref.uses import ask_type, call_method, local_value, owner_of, to_here

if TYPE_CHECKING:
    from rpcgroup.rref.context import RRefContext

__all__ = ["RRef", "RRefProxy", "use_context"]

T = TypeVar("T")

_current: RRefContext | None = None
"""Where `RRef(value)` makes its references: the context of this process's agent."""


def use_context(context: RRefContext | None) -> None:
    """Let `RRef(value)` use `context` from now on; None: raise `NotInitializedError`."""
    global _current
    _current = context


class RRef(Generic[T]):
    """A reference to a value of type T on one worker, its owner; the value stays there while references
    exist.

    `RRef(value)` refers to a value of this worker. Equality is identity. A reference travels in the arguments
    and results of calls only. Raises `NotInitializedError` before `init_rpc`.

    Source: torch's `torch.distributed.rpc.RRef`.
    """

    __slots__ = (
        "__weakref__",
        "_cell",
        "_context",
        "_future",
        "_profiling_future",
        "_rref_id",
        "_type",
        "_type_future",
        "_user",
    )

    _type: Any
    _type_future: Any
    _future: Any
    _profiling_future: Any

    def __init__(self, value: T, type_hint: Any = None) -> None:
        """`type_hint` is torch's, for scripted modules, which need one; any other value is taken as it is."""
        self._user: UserFork | None = None
        if type_hint is None and isinstance(value, torch.jit.ScriptModule):
            raise RRefError(
                "The RRef being created contains a ScriptModule, must provide its ModuleInterface type hint."
            )
        if _current is None:
            raise NotInitializedError(
                "Current RPC agent is not set! Did you initialize the RPC framework, by init_rpc, before RRef(value)?"
            )
        cell = Cell.of(value, _current.port.events_of(value))
        self._adopt(_current, _current.new_rref_id(), None, cell)

    @classmethod
    def of_user(cls, context: RRefContext, user: UserFork) -> RRef[Any]:
        """The reference that stands for a fork held here."""
        return cls.__new__(cls)._adopt(context, user.rref_id, user, None)

    @classmethod
    def of_owner(cls, context: RRefContext, rref_id: RRefId, cell: Cell) -> RRef[Any]:
        """A reference to a value of this worker."""
        return cls.__new__(cls)._adopt(context, rref_id, None, cell)

    def owner(self) -> WorkerInfoLike:
        return owner_of(self._context, self)

    def owner_name(self) -> str:
        return self._context.port.name if self._user is None else self._user.owner_name

    def is_owner(self) -> bool:
        return self._user is None

    def confirmed_by_owner(self) -> bool:
        """Whether the owner knows this reference; true on the owner."""
        return self._user is None or self._user.state is UserState.CONFIRMED

    def to_here(self, timeout: float = -1) -> T:
        """The value: a copy, on the owner the value itself. Blocks until it is there, at most `timeout`
        seconds.

        -1 is the default timeout, 0 is none. Raises `CallTimeoutError`, `OwnerDiedError`, what the function
        that was to make the value raised, and `RRefError` where the reference cannot be used.
        """
        value: T = to_here(self._context, self, timeout)
        return value

    def local_value(self) -> T:
        """The value, on its owner; blocks while the function that makes it runs. Raises `RRefError`
        elsewhere.
        """
        value: T = local_value(self._context, self)
        return value

    def rpc_sync(self, timeout: float = -1) -> RRefProxy:
        """`rref.rpc_sync().method(...)` calls a method of the value where it lives, and waits."""
        return RRefProxy(self, "sync", timeout)

    def rpc_async(self, timeout: float = -1) -> RRefProxy:
        """`rref.rpc_async().method(...)` returns a future of the method's result."""
        return RRefProxy(self, "async", timeout)

    def remote(self, timeout: float = -1) -> RRefProxy:
        """`rref.remote().method(...)` returns a reference to the result, which stays on the owner."""
        return RRefProxy(self, "remote", timeout)

    def backward(self, dist_autograd_ctx_id: int = -1, retain_graph: bool = False) -> None:
        """Run a backward pass at the owner, with the referenced tensor as its root.

        Without an autograd context only at the owner itself, and into `.grad`. Raises as
        `rpcgroup.autograd.backward`, and `RRefError` where the value is no tensor.
        """
        backward(self, dist_autograd_ctx_id, retain_graph)

    def _get_type(self, timeout: float = -1, blocking: bool = True) -> Any:
        """The value's type, asked of the owner once; not blocking: a future of it."""
        if blocking:
            if self._type is None:
                self._type = ask_type(self, timeout).wait()
            return self._type
        if self._type_future is None:
            self._type_future = ask_type(self, timeout)
        return self._type_future

    def _get_future(self) -> Any:
        """The future of the creation, where `remote` made this reference; the agent sets it."""
        if self._future is None:
            raise RRefError(f"{self} was not made by remote() on this worker")
        return self._future

    def _get_profiling_future(self) -> Any:
        """Done when the profile that `remote` was called in has the events of that call."""
        if self._profiling_future is None:
            raise RRefError(f"{self} was not made by remote() within a profile")
        return self._profiling_future

    def _set_profiling_future(self, future: Any) -> None:
        self._profiling_future = future

    def _serialize(self) -> tuple[RRef[T]]:
        """For reducers of programs' own: what stands for this reference inside a call. Raises what a use raises."""
        self._context.require_usable(self, "call fork an UserRRef")
        return (self,)

    @staticmethod
    def _deserialize(serialized: tuple[RRef[Any]]) -> RRef[Any]:
        return serialized[0]

    def __str__(self) -> str:
        rref_id = self._context.show_id(self._rref_id)
        if self._user is None:
            return f"OwnerRRef({rref_id})"
        return f"UserRRef(RRefId = {rref_id}, ForkId = {self._context.show_id(self._user.fork_id)})"

    __repr__ = __str__

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RRefError(
            "Can not pickle rref in python pickler, rref can only be pickled when using RPC: pass it in the "
            "arguments or the result of a call"
        )

    def __del__(self) -> None:
        # Anywhere, inside any lock, at interpreter exit: append and poke, nothing else.
        user = self._user
        if user is not None:
            self._context.let_go(user)

    def _adopt(
        self, context: RRefContext, rref_id: RRefId, user: UserFork | None, cell: Cell | None
    ) -> RRef[T]:
        self._context = context
        self._rref_id = rref_id
        self._user = user
        self._cell = cell
        self._type = None
        self._type_future = None
        self._future = None
        self._profiling_future = None
        return self


class RRefProxy:
    """Its attributes are the methods of the referenced value, called where it lives."""

    __slots__ = ("_kind", "_rref", "_timeout")

    def __init__(self, rref: RRef[Any], kind: CallKind, timeout: float) -> None:
        self._rref = rref
        self._kind = kind
        self._timeout = timeout

    def __getattr__(self, name: str) -> Any:
        return partial(call_method, self._rref, self._kind, self._timeout, name)
