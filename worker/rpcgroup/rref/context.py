"""Runs one worker's references: the pure machine under one lock, its instructions carried out through a
`Port`.

The agent calls this; for a call with references in it the order is

    caller   fork (each, while encoding) ........ fork_failed if the message provably did not reach the peer
    callee   receive -> when_confirmed -> run the function
    reply    the same, with the roles exchanged

A message that arrived always gets to `receive` or, if nobody will look at it (cancelled, past its deadline,
an answer nobody waits for any more), to `decline`: else its forks stay pinned until this worker dies.
For `remote`: begin_remote and remote_done at the caller, accept_remote and set_value or set_error at the
owner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rpcgroup.errors import NotInitializedError, RRefError
from rpcgroup.rref.cell import Cell, Waiter
from rpcgroup.rref.driver import Driver, Pending, tell
from rpcgroup.rref.failures import again, closed_error, creation_error, require_usable
from rpcgroup.rref.ids import ForkData, ForkId, RRefId, WireFork
from rpcgroup.rref.messages import decode_fetch, decode_items
from rpcgroup.rref.port import Port
from rpcgroup.rref.rref import RRef
from rpcgroup.rref.transitions import UserState
from rpcgroup.rref.user import UserFork
from rpcgroup.wire.messages import MessageType

__all__ = ["Counts", "Pending", "RRefContext"]


class Counts(NamedTuple):
    """How much one worker holds."""

    owner_rrefs: int
    user_rrefs: int
    forks: int
    pending_users: int
    pending_children: int
    pending_futures: int = 0
    """Creations by `remote` that have not been answered."""


class RRefContext:
    """All references of one worker, from join to shutdown. Thread-safe; a closed one raises
    `NotInitializedError`.
    """

    def __init__(self, port: Port) -> None:
        self.port = port
        self.before_remote: Callable[[RRef[Any], str, float], None] = lambda rref, name, timeout: None
        self.start_async: Callable[[Callable[[], Any]], Any] = lambda start: start()
        """Gives the future of an asynchronous use."""
        """Called with each use of `rref.remote().name`; raises where it must not be made."""
        self._driver = Driver(port)
        self._creations = 0  # guarded by the driver's lock

    # On the owner.
    def create(self, value: Any) -> RRef[Any]:
        """`RRef(value)`: this worker owns it. Known to the context only once it is shared."""
        return RRef.of_owner(self, self.new_rref_id(), Cell.of(value, self.port.events_of(value)))

    def accept_remote(self, fork: WireFork, sender: int) -> RRef[Any]:
        """A creation by `remote` has arrived: the reference to give to `set_value` or `set_error`.

        REMOTE_RET may be answered at once, which says that the value is pinned, or when its function has
        finished, which lets the call's timeout bound the function.
        Raises `RRefError` where its creator has given it up or is dead: do not run the function then.
        """
        data = ForkData.from_wire(fork)
        with self._driver as machine:
            machine.accept_remote(data, sender)
            cell = self._driver.cells.setdefault(data.rref_id, Cell())
        return RRef.of_owner(self, data.rref_id, cell)

    def set_value(self, rref: RRef[Any], value: Any) -> None:
        """The function of an accepted creation returned. Runs the callbacks of waiting fetches inline.

        What is on devices has been enqueued on this thread's current streams.
        """
        self._driver.settle(_cell_of(rref), value, None, self.port.events_of(value))

    def set_error(self, rref: RRef[Any], error: BaseException) -> None:
        """The function of an accepted creation raised: every use of the value raises `error`."""
        self._driver.settle(_cell_of(rref), None, error)

    def when_owner_value(self, payload: bytes, sender: int, callback: Waiter) -> None:
        """Answer a fetch: `callback(value, None)` or `callback(None, error)`.

        Inline where the value is there; else later, from the thread that sets it. Occupies no thread
        meanwhile, and works before the value's creation has arrived. Raises `RRefError` where `sender` is
        dead.
        """
        rref_id = decode_fetch(payload)
        with self._driver as machine:
            machine.require_living(sender)
            cell = self._driver.asked_for(rref_id)
            if not cell.done:
                cell.waiters.append(callback)
                return
        tell([callback], cell.value, cell.error, cell.events)

    # Creation by `remote`.
    def begin_remote(self, owner: int, owner_name: str, type_name: str = "") -> tuple[RRef[Any], ForkData]:
        """Make up the reference for a `remote` call to `owner` (an incarnation; one's own too).

        The second part travels with the call. Raises `PeerUnreachableError` where `owner` is dead.
        """
        with self._driver as machine:
            user, fork = machine.begin_remote(owner, owner_name, type_name)
            self._creations += 1
            if user is not None:
                return RRef.of_user(self, user), fork
            cell = self._driver.cells[fork.rref_id] = Cell()
        return RRef.of_owner(self, fork.rref_id, cell), fork

    def orphan(self, owner: int, owner_name: str) -> RRef[Any]:
        """The reference to what a worker that is gone would have made: each use raises `OwnerDiedError`."""
        with self._driver as machine:
            return RRef.of_user(self, machine.orphan(owner, owner_name))

    def remote_done(self, fork: ForkData, error: BaseException | None) -> None:
        """The creation was answered, or failed, or timed out; call exactly once.

        With an error, every later use or pass of the reference raises one of its kind. It need not be known
        whether the owner has run the call. A function that raised is not an error here: that is the value.
        """
        waiters: list[Waiter] = []
        failure = None if error is None else creation_error(fork, error)
        with self._driver as machine:
            self._creations -= 1
            if failure is None:
                machine.remote_confirmed(fork)
                return
            if fork.owner == self.port.incarnation and fork.rref_id in self._driver.cells:
                cell = self._driver.cells[fork.rref_id]
                cell.creation_error = failure
                waiters = cell.settle(None, failure)
            machine.remote_failed(fork, failure)
        tell(waiters, None, failure)

    # Passing on.
    def fork(self, rref: RRef[Any], to: int) -> ForkData:
        """One reference more, for the message being encoded to the worker of incarnation `to`.

        Raises what a use of `rref` raises, and `PeerUnreachableError` where `to` is dead.
        """
        if rref._context is not self:
            raise RRefError(f"{rref} was made before the last init_rpc and cannot be passed on")
        with self._driver as machine:
            self.require_usable(rref)
            if rref._user is not None:
                return machine.pass_on(rref._user, to)
            cell = _cell_of(rref)
            fork = machine.pass_on_owned(rref._rref_id, cell.type_name(), to)
            self._driver.cells[rref._rref_id] = cell
            return fork

    def fork_failed(self, fork: ForkData) -> None:
        """The message with this fork provably never reached the peer's `receive`.

        Do not call it where that is unknown: then the peer's answer or its death settles the fork.
        """
        with self._driver as machine:
            machine.take_back(fork)

    def receive(self, forks: Iterable[WireFork], sender: int) -> tuple[list[RRef[Any]], Pending | None]:
        """The references of a message that arrived, in order, and what to wait for before user code sees
        them.

        Raises `RRefError` where `sender` is dead; a message is received at most once.
        """
        rrefs: list[RRef[Any]] = []
        pending: Pending | None = None
        with self._driver as machine:
            machine.require_living(sender)
            for wire in forks:
                fork = ForkData.from_wire(wire)
                if fork.owner == self.port.incarnation:
                    cell = self._driver.asked_for(fork.rref_id)
                    machine.receive(fork, sender)
                    rrefs.append(RRef.of_owner(self, fork.rref_id, cell))
                    continue
                user = machine.receive(fork, sender)
                assert user is not None
                rrefs.append(RRef.of_user(self, user))
                if user.state is not UserState.CONFIRMED:
                    pending = pending or Pending()
                    self._driver.awaits(user, pending)
        return rrefs, pending

    def decline(self, forks: Iterable[WireFork], sender: int) -> None:
        """The references of a message that nobody will look at: `receive` and let go. Does not raise."""
        try:
            self.receive(forks, sender)
        except (NotInitializedError, RRefError):
            return  # what a dead sender handed on is reclaimed; a closed context holds nothing
        self.reap()

    def when_confirmed(
        self, pending: Pending | None, callback: Callable[[BaseException | None], None]
    ) -> None:
        """Call `callback` once every reference is known to its owner; inline if nothing is pending.

        With an error (`OwnerDiedError`, `RRefError`) where one never will be: do not run the function.
        """
        if pending is not None:
            with self._driver:
                if not pending.settled():
                    pending.callback = callback
                    return
        callback(None if pending is None else pending.error)

    # Events.
    def on_message(self, kind: MessageType, payload: bytes, sender: int) -> None:
        """RREF_USER_DELETE, RREF_CHILD_ACCEPT or RREF_FORK_REQUEST. Idempotent, quick; answer RREF_ACK after
        it.

        Raises `RRefError` where `sender` is dead (send it back), `RemoteProtocolError` for a malformed
        payload.
        """
        items = decode_items(payload)
        with self._driver as machine:
            machine.on_message(kind, items, sender)

    def member_died(self, incarnation: int) -> None:
        """The worker is gone for good: dead, left, or replaced by a newer incarnation."""
        with self._driver as machine:
            machine.member_died(incarnation)

    @property
    def has_let_go(self) -> bool:
        """There is something to `reap`."""
        return self._driver.has_let_go

    def reap(self) -> None:
        """Delete what the program has let go of, as every event does. Cheap when there is nothing."""
        self._driver.reap()

    # The end.
    def shutdown(self, timeout: float | None) -> bool:
        """Delete every user reference held here and wait until their owners have answered.

        False where that took longer than `timeout` seconds (None: no limit). A use of one afterwards raises.
        """
        with self._driver as machine:
            quiet = self._driver.when_quiet()
            machine.release_all()
        return self.port.wait(quiet, timeout)

    def leaks(self) -> list[str]:
        """One line for each reference that is still there: after `shutdown` on all workers, a leak."""
        with self._driver as machine:
            users = [(u.rref_id, u.fork_id, u.owner_name) for u in machine.held.users()]
            owned = machine.owned.forks()
        return [
            f"Leaking RRef {self.show_id(rref_id)}: fork {self.show_id(fork_id)}, owned by {owner_name!r}"
            for rref_id, fork_id, owner_name in users
        ] + [
            f"Leaking RRef {self.show_id(rref_id)}, owned here, used by workers {sorted(set(forks.values()))}"
            for rref_id, forks in owned.items()
        ]

    def close(self) -> None:
        """Drop everything and send nothing more; waiting fetches and calls get `NotInitializedError`.
        Idempotent.
        """
        self._driver.close()

    def counts(self) -> Counts:
        with self._driver as machine:
            held, owned = machine.held, machine.owned
            forks = sum(len(forks) for forks in owned.forks().values())
            return Counts(
                len(owned), len(held), forks, held.pending_users(), held.pending_children(), self._creations
            )

    def debug_info(self) -> dict[str, str]:
        """`counts` under torch's names (`num_owner_rrefs`, `num_user_rrefs`, `num_forks`, ...)."""
        return {f"num_{name}": str(count) for name, count in self.counts()._asdict().items()}

    # For `RRef` and `uses`.
    def new_rref_id(self) -> RRefId:
        return self._driver.machine.new_rref_id()

    def let_go(self, user: UserFork) -> None:
        """`RRef.__del__`: takes no lock, never blocks."""
        self._driver.let_go(user)

    def require_usable(self, rref: RRef[Any], use: str = "use it") -> None:
        """Raises what a use of `rref` raises at once. Takes no lock: judges by its state of this moment."""
        if self._driver.is_closed():
            raise closed_error(use)
        if rref._user is not None:
            require_usable(rref._user)
        else:
            _require_created(_cell_of(rref))

    def when_set(self, cell: Cell, waiter: Waiter) -> None:
        """`when_owner_value` for a reference of the owner itself."""
        with self._driver:
            if not cell.done:
                cell.waiters.append(waiter)
                return
        tell([waiter], cell.value, cell.error, cell.events)

    def is_dead(self, incarnation: int) -> bool:
        return self._driver.machine.is_dead(incarnation)

    def show_id(self, id_: RRefId | ForkId) -> str:
        """As torch writes an id."""
        return f"GloballyUniqueId(created_on={self.port.worker_id(id_.worker)}, local_id={id_.local})"


def _cell_of(rref: RRef[Any]) -> Cell:
    if rref._cell is None:
        raise RRefError(f"{rref} has no value on this worker: its owner is {rref.owner_name()!r}")
    return rref._cell


def _require_created(cell: Cell) -> None:
    if cell.creation_error is not None:
        raise again(cell.creation_error)
