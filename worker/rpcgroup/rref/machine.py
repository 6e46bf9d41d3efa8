"""The fork protocol of one worker: events in, instructions out. Pure: no lock, no thread, no clock.

Each event is a method; `take` then gives the instructions it caused. Time enters as `fire`, answers to
messages as `acknowledged`, `refused` and `unanswered`. Nothing is assumed of the order in which messages
arrive, nor that one arrives once. The two halves stand in `owner` and `user`, their tables in `transitions`.

A worker that dies is refused from then on, its incarnation is never used again. What it held is reclaimed
only after GRACE: a fork it had passed on may still be on its way to the owner, and lives if it arrives by
then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from rpcgroup.errors import PeerUnreachableError, RemoteProtocolError, RRefError
from rpcgroup.rref.ids import ForkData, ForkId, RRefId
from rpcgroup.rref.instructions import Expire, Forget, Instruction, Later, Reclaim, Retry, Timer
from rpcgroup.rref.messages import Item, Message
from rpcgroup.rref.outbox import Outbox
from rpcgroup.rref.owner import OwnerTable
from rpcgroup.rref.transitions import ValueState
from rpcgroup.rref.user import UserFork, UserTable
from rpcgroup.wire.messages import MessageType

__all__ = ["GRACE", "Machine"]

GRACE: Final = 1.0
"""Seconds; a FORK_REQUEST takes milliseconds, and forks must be reclaimed within the lease time + 2 s."""


class Machine:
    """`me` and every other worker are incarnations; `name` is this worker's."""

    def __init__(self, me: int, name: str) -> None:
        self.me = me
        self._name = name
        self._ids = itertools.count()
        self._out: list[Instruction] = []
        self._dead: set[int] = set()
        """One number for each member that has died in this worker's life."""
        self._outbox = Outbox(self._out, self._dead)
        self.owned = OwnerTable(me, self._out, self._dead)
        self.held = UserTable(me, self._out, self._outbox, self._dead)

    def take(self) -> list[Instruction]:
        """The instructions since the last time, in order."""
        self._outbox.flush()
        taken = self._out.copy()
        self._out.clear()
        return taken

    def is_dead(self, worker: int) -> bool:
        return worker in self._dead

    def quiet(self) -> bool:
        """Nothing is held and no message is unanswered."""
        return not (self.held or self.held.pending_children() or self._outbox)

    # The program.
    def new_rref_id(self) -> RRefId:
        """For `RRef(value)`, which is not in the table before it is shared. Needs no lock."""
        return RRefId(self.me, next(self._ids))

    def begin_remote(self, owner: int, owner_name: str, type_name: str) -> tuple[UserFork | None, ForkData]:
        """No fork where this worker is the owner: then the RRefId serves as the fork that keeps the value."""
        self._require_alive(owner, owner_name)
        rref_id = self.new_rref_id()
        if owner == self.me:
            fork = ForkData(owner, owner_name, rref_id, ForkId(*rref_id), self.me, type_name)
            self.owned.share(rref_id, fork.fork_id, self.me)
            return None, fork
        fork = ForkData(owner, owner_name, rref_id, self._new_fork_id(), self.me, type_name)
        return self.held.begin(fork), fork

    def orphan(self, owner: int, owner_name: str) -> UserFork:
        """As `begin_remote`, where the owner is gone already."""
        rref_id = self.new_rref_id()
        return self.held.orphan(ForkData(owner, owner_name, rref_id, self._new_fork_id(), self.me, ""))

    def remote_confirmed(self, fork: ForkData) -> None:
        if fork.owner == self.me:
            self.owned.delete(fork.rref_id, fork.fork_id, self.me, in_doubt=False)
        else:
            self.held.confirm(fork.fork_id)

    def remote_failed(self, fork: ForkData, error: Exception) -> None:
        if fork.owner == self.me:
            self.owned.delete(fork.rref_id, fork.fork_id, self.me, in_doubt=True)
        else:
            self.held.fail(fork.fork_id, error)

    def pass_on_owned(self, rref_id: RRefId, type_name: str, to: int) -> ForkData:
        """Owner -> user: registered at once. Owner -> itself: the same, until it is received."""
        self._require_alive(to, "")
        fork_id = self._new_fork_id()
        self.owned.share(rref_id, fork_id, to)
        return ForkData(self.me, self._name, rref_id, fork_id, self.me, type_name)

    def pass_on(self, user: UserFork, to: int) -> ForkData:
        """User -> owner or user -> user: a child that keeps its parent until it is accepted."""
        self._require_alive(to, "")
        return self.held.pass_on(user, self._new_fork_id(), to)

    def take_back(self, fork: ForkData) -> None:
        """The message that was to carry the fork never arrived."""
        if fork.owner == self.me:
            self.owned.delete(fork.rref_id, fork.fork_id, self.me, in_doubt=False)
        else:
            self.held.child_settled(fork.fork_id)

    def receive(self, fork: ForkData, sender: int) -> UserFork | None:
        """A fork arrived; None where this worker is the owner (see `expect` for its value)."""
        if fork.parent != sender:
            raise RemoteProtocolError(
                f"worker {sender} passes on {fork.fork_id} in the name of {fork.parent}"
            )
        if fork.owner == self.me:
            self._receive_own(fork)
            return None
        # A name of mine with another incarnation is my predecessor's: nobody told me of its death.
        owner_dead = fork.owner in self._dead or fork.owner_name == self._name
        return self.held.receive(fork, owner_dead)

    def accept_remote(self, fork: ForkData, sender: int) -> None:
        """A creation arrived. Raises `RRefError` where its function must not run."""
        self.require_living(sender)
        if fork.owner != self.me:
            raise RRefError(f"{fork.rref_id} is to be created on incarnation {fork.owner}, this is {self.me}")
        self.owned.create(fork.rref_id, fork.fork_id, sender)

    def expect(self, rref_id: RRefId) -> ValueState:
        """Somebody wants the value, whether or not its creation has arrived."""
        return self.owned.expect(rref_id)

    def release(self, users: Iterable[UserFork]) -> None:
        """The program has let go of these."""
        self.held.release(users)

    def release_all(self) -> None:
        """Graceful shutdown: the program may use none any more."""
        self.held.release_all()

    # The network.
    def on_message(self, kind: MessageType, items: Iterable[Item], sender: int) -> None:
        """Idempotent. Raises `RRefError` where `sender` is dead."""
        self.require_living(sender)
        if kind is MessageType.RREF_USER_DELETE:
            for rref_id, fork_id, in_doubt in items:
                self.owned.delete(rref_id, fork_id, sender, in_doubt)
        elif kind is MessageType.RREF_FORK_REQUEST:
            for rref_id, fork_id, _ in items:
                self.owned.request(rref_id, fork_id, sender)
        elif kind is MessageType.RREF_CHILD_ACCEPT:
            for _, fork_id, _ in items:
                self.held.child_settled(fork_id)
        else:
            raise RemoteProtocolError(f"{kind!r} is no control message of references")

    def acknowledged(self, message: Message) -> None:
        """The peer has handled it."""
        if not self._outbox.answered(message):
            return
        if message.kind is MessageType.RREF_FORK_REQUEST:
            for item in message.items:
                self.held.confirm(item.fork_id)
        elif message.kind is MessageType.RREF_USER_DELETE:
            for item in message.items:
                self.held.deleted(item.fork_id)

    def refused(self, message: Message, error: Exception) -> None:
        """The peer will never handle it: it takes this worker for dead."""
        if message.kind is not MessageType.RREF_FORK_REQUEST:
            self.acknowledged(message)
        elif self._outbox.answered(message):
            for item in message.items:
                self.held.fail(item.fork_id, error)

    def unanswered(self, message: Message) -> None:
        """It may or may not have arrived: to be sent again."""
        if self._outbox.unanswered(message) and message.kind is MessageType.RREF_FORK_REQUEST:
            for item in message.items:
                self.held.doubt(item.fork_id)

    def fire(self, timer: Timer) -> None:
        """The time of a `Later` has come."""
        match timer:
            case Retry(message):
                self._outbox.retry(message)
            case Reclaim(worker):
                self.owned.reclaim(worker)
                self.held.reclaim(worker)
            case Expire(rref_id):
                self.owned.expire(rref_id)
            case Forget(dead_id):
                self.owned.forget(dead_id)

    def member_died(self, worker: int) -> None:
        if worker in self._dead or worker == self.me:
            return
        self._dead.add(worker)
        self._outbox.peer_died(worker)
        self.held.owner_died(worker)
        self.owned.creator_died(worker)
        self._out.append(Later(GRACE, Reclaim(worker)))

    def require_living(self, sender: int) -> None:
        if sender in self._dead:
            raise RRefError(f"worker {sender} was declared dead: nothing is accepted from it")

    def _require_alive(self, worker: int, name: str) -> None:
        if worker in self._dead:
            raise PeerUnreachableError(f"worker {name or worker!r} (incarnation {worker}) died")

    def _receive_own(self, fork: ForkData) -> None:
        """Back at the owner: nothing is registered, the parent need not wait."""
        if fork.parent == self.me:
            self.owned.delete(fork.rref_id, fork.fork_id, self.me, in_doubt=False)
        else:
            item = Item(fork.rref_id, fork.fork_id)
            self._outbox.add(fork.parent, MessageType.RREF_CHILD_ACCEPT, item)

    def _new_fork_id(self) -> ForkId:
        return ForkId(self.me, next(self._ids))
