"""The users' half of the protocol: the forks this worker holds, and the children it has passed on. Pure.

A fork is kept until three things are so: its owner knows it, the program has let go of it, and every child
passed on from it is known to the owner (G2). Then the owner is told of its deletion until it answers (G1).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import NamedTuple

from rpcgroup.errors import OwnerDiedError, RemoteProtocolError
from rpcgroup.rref.ids import ForkData, ForkId
from rpcgroup.rref.instructions import Confirmed, Instruction
from rpcgroup.rref.messages import Item
from rpcgroup.rref.outbox import Outbox
from rpcgroup.rref.transitions import USER_MOVES, UserEvent, UserState, move
from rpcgroup.wire.messages import MessageType

__all__ = ["Child", "UserFork", "UserTable"]

_RELEASABLE = frozenset((UserState.CONFIRMED, UserState.FAILED, UserState.ORPHANED))


class UserFork:
    """One fork held here. Changed by its `UserTable` only; a single attribute may be read from anywhere."""

    __slots__ = (
        "children",
        "error",
        "fork_id",
        "held",
        "in_doubt",
        "owner",
        "owner_name",
        "parent",
        "rref_id",
        "state",
        "type_name",
    )

    def __init__(self, fork: ForkData, parent: int | None) -> None:
        self.owner = fork.owner
        self.owner_name = fork.owner_name
        self.rref_id = fork.rref_id
        self.fork_id = fork.fork_id
        self.type_name = fork.type_name
        self.parent = parent
        """Who waits for CHILD_ACCEPT; None where nobody does: created here, or passed on by the owner."""
        self.state = UserState.PENDING
        self.held = True
        """The program may still use it."""
        self.children = 0
        """Passed on from it and not yet known to the owner."""
        self.in_doubt = False
        """A message that registers it may still be under way although it is over for this worker."""
        self.error: Exception | None = None
        """Why it FAILED."""


class Child(NamedTuple):
    """A fork passed on and not yet known to the owner: its parent here is kept."""

    parent: UserFork
    to: int


class UserTable:
    """Every fork that this worker holds. `dead` is the machine's."""

    def __init__(self, me: int, out: list[Instruction], outbox: Outbox, dead: Set[int]) -> None:
        self._me = me
        self._out = out
        self._outbox = outbox
        self._dead = dead
        self._users: dict[ForkId, UserFork] = {}
        self._children: dict[ForkId, Child] = {}
        self._closing = False

    def begin(self, fork: ForkData) -> UserFork:
        """A creation by `remote`: pending until it is answered."""
        user = self._users[fork.fork_id] = UserFork(fork, parent=None)
        return user

    def orphan(self, fork: ForkData) -> UserFork:
        """A creation that its owner, who is gone, never heard of."""
        user = self.begin(fork)
        user.state = move(USER_MOVES, user.state, UserEvent.OWNER_DIED)
        return user

    def pass_on(self, user: UserFork, fork_id: ForkId, to: int) -> ForkData:
        """A child for `to`; `user` is kept until `child_settled`."""
        self._children[fork_id] = Child(user, to)
        user.children += 1
        return ForkData(user.owner, user.owner_name, user.rref_id, fork_id, self._me, user.type_name)

    def child_settled(self, fork_id: ForkId) -> None:
        """The child is known to the owner, or never was and never will be. Idempotent."""
        child = self._children.pop(fork_id, None)
        if child is not None:
            child.parent.children -= 1
            self._release_if_free(child.parent)

    def receive(self, fork: ForkData, owner_dead: bool) -> UserFork:
        """A fork of somebody else's value arrived from its parent. Raises `RemoteProtocolError` if it is
        here.
        """
        if fork.fork_id in self._users:
            raise RemoteProtocolError(f"{fork.fork_id} was received twice")
        from_owner = fork.parent == fork.owner
        user = self._users[fork.fork_id] = UserFork(fork, parent=None if from_owner else fork.parent)
        user.held = not self._closing
        if owner_dead:
            user.state = move(USER_MOVES, user.state, UserEvent.OWNER_DIED)
            self._accept_child(user)
        elif from_owner:
            user.state = move(USER_MOVES, user.state, UserEvent.CONFIRM)
        else:
            self._outbox.add(user.owner, MessageType.RREF_FORK_REQUEST, Item(user.rref_id, user.fork_id))
        if self._closing:
            self._release_if_free(user)
        return user

    def confirm(self, fork_id: ForkId) -> None:
        user = self._users.get(fork_id)
        if user is not None:
            user.state = move(USER_MOVES, user.state, UserEvent.CONFIRM)
            self._settle(user, None)

    def fail(self, fork_id: ForkId, error: Exception) -> None:
        """Its creation failed, or its owner refused it; what the owner knows of it is in doubt."""
        user = self._users.get(fork_id)
        if user is not None:
            user.in_doubt = True
            user.error = error
            user.state = move(USER_MOVES, user.state, UserEvent.FAIL)
            self._settle(user, error)

    def doubt(self, fork_id: ForkId) -> None:
        """A message that registers it was sent and its outcome is unknown."""
        user = self._users.get(fork_id)
        if user is not None:
            user.in_doubt = True

    def release(self, users: Iterable[UserFork]) -> None:
        """The program has let go of them."""
        for user in users:
            user.held = False
            self._release_if_free(user)

    def release_all(self) -> None:
        """The program may use none any more, those still to come included."""
        self._closing = True
        self.release(list(self._users.values()))

    def deleted(self, fork_id: ForkId) -> None:
        """The owner has answered USER_DELETE."""
        user = self._users.get(fork_id)
        if user is not None:
            user.state = move(USER_MOVES, user.state, UserEvent.ACKNOWLEDGE)
            del self._users[fork_id]

    def owner_died(self, worker: int) -> None:
        for user in [user for user in self._users.values() if user.owner == worker]:
            was_pending = user.state is UserState.PENDING
            user.state = move(USER_MOVES, user.state, UserEvent.OWNER_DIED)
            if user.state is UserState.DELETED:
                del self._users[user.fork_id]
                continue
            if was_pending:
                self._settle(user, OwnerDiedError(f"{user.owner_name!r}, the owner of {user.rref_id}, died"))
            self._release_if_free(user)
        for fork_id in [fork_id for fork_id, child in self._children.items() if child.parent.owner == worker]:
            self.child_settled(fork_id)

    def reclaim(self, worker: int) -> None:
        """Whatever a dead worker was passed and has not confirmed by now never will be."""
        for fork_id in [fork_id for fork_id, child in self._children.items() if child.to == worker]:
            self.child_settled(fork_id)

    def __len__(self) -> int:
        return len(self._users)

    def users(self) -> Iterable[UserFork]:
        return self._users.values()

    def pending_users(self) -> int:
        return sum(user.state is UserState.PENDING for user in self._users.values())

    def pending_children(self) -> int:
        return len(self._children)

    def _settle(self, user: UserFork, error: Exception | None) -> None:
        """It is not pending any more: tell whoever waits here, and the parent that waits for its child."""
        self._out.append(Confirmed(user.fork_id, error))
        self._accept_child(user)
        self._release_if_free(user)

    def _accept_child(self, user: UserFork) -> None:
        if user.parent is None:
            return
        if user.parent == self._me:
            self.child_settled(user.fork_id)
        else:
            self._outbox.add(user.parent, MessageType.RREF_CHILD_ACCEPT, Item(user.rref_id, user.fork_id))
        user.parent = None

    def _release_if_free(self, user: UserFork) -> None:
        if user.held or user.children or user.state not in _RELEASABLE:
            return
        user.state = move(USER_MOVES, user.state, UserEvent.RELEASE)
        if user.state is UserState.DELETED:
            del self._users[user.fork_id]
        else:
            item = Item(user.rref_id, user.fork_id, user.in_doubt)
            self._outbox.add(user.owner, MessageType.RREF_USER_DELETE, item)
