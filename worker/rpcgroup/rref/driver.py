"""The shell around the machine: one event at a time under a lock, then its instructions without the lock."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from rpcgroup.cuda.events import Events
from rpcgroup.errors import NotInitializedError, PeerUnreachableError, RRefError
from rpcgroup.rref.cell import Cell, Waiter
from rpcgroup.rref.failures import closed_error, lost_error, use_error
from rpcgroup.rref.ids import ForkId, RRefId
from rpcgroup.rref.instructions import Confirmed, Drop, Later, Lose, Send, Timer
from rpcgroup.rref.machine import Machine
from rpcgroup.rref.messages import Message, encode_items
from rpcgroup.rref.port import Port
from rpcgroup.rref.transitions import UserState, ValueState
from rpcgroup.rref.user import UserFork

__all__ = ["Driver", "Pending", "tell"]

logger = logging.getLogger(__name__)

_Action = tuple[Callable[..., object], tuple[Any, ...]]
"""What is left to do once the lock is free."""


class Pending:
    """References of one message that their owners have not confirmed yet. Guarded by its driver's lock."""

    __slots__ = ("callback", "error", "remaining")

    def __init__(self) -> None:
        self.remaining = 0
        self.error: BaseException | None = None
        self.callback: Callable[[BaseException | None], None] | None = None

    def settled(self) -> bool:
        return self.remaining == 0 or self.error is not None


class Driver:
    """`with driver as machine:` is one event. Raises `NotInitializedError` once closed."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.machine = Machine(port.incarnation, port.name)
        # Guards the machine and every field below. Never held while code of the port, the agent or a value
        # runs; what a garbage collection inside it runs of this package is `let_go`, which takes no lock.
        self._lock = threading.Lock()
        self.cells: dict[RRefId, Cell] = {}
        """Of the values in the machine's table; made when first needed."""
        self._awaited: dict[ForkId, Pending] = {}
        self._let_go: deque[UserFork] = deque()
        """From `RRef.__del__` to the next event; bounded by the forks held."""
        self._quiet: threading.Event | None = None
        self._closed = False

    def __enter__(self) -> Machine:
        self._lock.acquire()
        if self._closed:
            self._lock.release()
            raise closed_error()
        if self._let_go:
            self._release_let_go()
        return self.machine

    def __exit__(self, *exc_info: object) -> None:
        try:
            actions = self._carry_out()
        finally:
            self._lock.release()
        for action, args in actions:
            action(*args)

    def let_go(self, user: UserFork) -> None:
        """From `RRef.__del__`, on any thread, inside any lock: never blocks."""
        if not self._closed:
            self._let_go.append(user)
            self.port.wake()

    @property
    def has_let_go(self) -> bool:
        """The program has dropped references that are still to be deleted."""
        return bool(self._let_go)

    def reap(self) -> None:
        if self._let_go:
            self._event(_nothing)

    def is_closed(self) -> bool:
        return self._closed

    def settle(
        self, cell: Cell, value: Any, error: BaseException | None, events: Events | None = None
    ) -> None:
        """Give a cell its value or error, once, and tell those who wait for it."""
        with self._lock:
            waiters = cell.settle(value, error, events)
        tell(waiters, value, error, events)

    # Inside an event.
    def asked_for(self, rref_id: RRefId) -> Cell:
        """The cell of a value that somebody asks for; an expected one is made, a lost one has its error."""
        cell = self.cells.get(rref_id)
        state = self.machine.expect(rref_id)
        if cell is None:
            cell = Cell()
            if state is ValueState.LOST:
                cell.settle(None, lost_error(rref_id, "its last user is gone"))
            else:
                self.cells[rref_id] = cell
        return cell

    def awaits(self, user: UserFork, pending: Pending) -> None:
        """A received fork is part of a message that waits for confirmation."""
        if user.state is UserState.PENDING:
            pending.remaining += 1
            self._awaited[user.fork_id] = pending
        else:
            pending.error = use_error(user)

    def when_quiet(self) -> threading.Event:
        """Set as soon as nothing is held and no message is unanswered, or the driver is closed."""
        self._quiet = threading.Event()
        return self._quiet

    def close(self) -> None:
        """Drop everything and send nothing more; whoever waits gets `NotInitializedError`. Idempotent."""
        with self._lock:
            self._closed = True
            cells, self.cells = self.cells, {}
            awaited, self._awaited = self._awaited, {}
            waiters = [waiter for cell in cells.values() for waiter in cell.settle(None, closed_error())]
            callbacks = [pending.callback for pending in set(awaited.values()) if not pending.settled()]
            if self._quiet is not None:
                self._quiet.set()
        tell(waiters, None, closed_error())
        for callback in callbacks:
            if callback is not None:
                _call(callback, closed_error())

    def _release_let_go(self) -> None:
        gone = []
        try:
            while True:
                gone.append(self._let_go.popleft())
        except IndexError:
            self.machine.release(gone)

    def _carry_out(self) -> list[_Action]:
        """Do what needs the lock; the rest is returned."""
        actions: list[_Action] = []
        for instruction in self.machine.take():
            match instruction:
                case Send(message):
                    actions.append((self._send, (message,)))
                case Later(delay, timer):
                    actions.append((self.port.call_later, (delay, partial(self._fire, timer))))
                case Confirmed(fork_id, error):
                    self._confirmed(fork_id, error, actions)
                case Drop(rref_id):
                    # The action keeps the cell, so that its value is destroyed outside the lock.
                    actions.append((_nothing, (self.cells.pop(rref_id, None),)))
                case Lose(rref_id, reason):
                    cell = self.cells.get(rref_id)
                    if cell is not None:
                        lost = lost_error(rref_id, reason)
                        actions.append((tell, (cell.settle(None, lost), None, lost)))
        if self._quiet is not None and self.machine.quiet():
            self._quiet.set()
        return actions

    def _confirmed(self, fork_id: ForkId, error: Exception | None, actions: list[_Action]) -> None:
        pending = self._awaited.pop(fork_id, None)
        if pending is None:
            return
        pending.remaining -= 1
        pending.error = pending.error or error
        if pending.settled() and pending.callback is not None:
            actions.append((_call, (pending.callback, pending.error)))
            pending.callback = None

    # Outside the lock.
    def _event(self, event: Callable[..., None], *args: Any) -> None:
        """An event that may come after the end."""
        try:
            with self:
                event(*args)
        except NotInitializedError:
            pass

    def _send(self, message: Message) -> None:
        self.port.send(
            message.to, message.kind, encode_items(message.items), partial(self._answered, message)
        )

    def _answered(self, message: Message, error: BaseException | None) -> None:
        if error is None:
            self._event(self.machine.acknowledged, message)
        elif isinstance(error, RRefError) and not isinstance(error, PeerUnreachableError):
            self._event(self.machine.refused, message, error)
        else:
            self._event(self.machine.unanswered, message)

    def _fire(self, timer: Timer) -> None:
        self._event(self.machine.fire, timer)


def tell(
    waiters: list[Waiter], value: Any, error: BaseException | None, events: Events | None = None
) -> None:
    """Each of them on streams of its own, behind the events."""
    for waiter in waiters:
        with nullcontext() if events is None else events.callback((), 0):
            _call(waiter, value, error)


def _call(callback: Callable[..., object], *args: Any) -> None:
    """One callback that raises must not keep the others from being called."""
    try:
        callback(*args)
    except Exception:
        logger.exception("a callback of a reference raised")


def _nothing(*_: object) -> None:
    pass
