"""The owner's half of the protocol: which values are shared, and who holds a fork of each. Pure.

A value stays while a fork of it is known or its creation is expected. What is deleted needs no memory, except
where its sender says that a message registering it may still be under way (it was sent more than once, or its
outcome is unknown): then its id is a tombstone for MESSAGE_LIFETIME. Tombstones are thus bounded by the
messages that failed within that time, not by the number of references ever made.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from rpcgroup.errors import RRefError
from rpcgroup.rref.ids import ForkId, RRefId
from rpcgroup.rref.instructions import Drop, Expire, Forget, Instruction, Later, Lose
from rpcgroup.rref.transitions import (
    FORK_MOVES,
    VALUE_MOVES,
    ForkEvent,
    ForkState,
    ValueEvent,
    ValueState,
    move,
)

__all__ = ["MESSAGE_LIFETIME", "OwnerTable", "Shared"]

MESSAGE_LIFETIME: Final = 600.0
"""Seconds after which a message that was given up is taken not to arrive any more."""


class Shared:
    """One value that others refer to. `forks`: the known ones, each with its holder's incarnation."""

    __slots__ = ("forks", "state")

    def __init__(self) -> None:
        self.state = ValueState.ABSENT
        self.forks: dict[ForkId, int] = {}


class OwnerTable:
    """Every value of this worker that is shared, expected or lost. `dead` is the machine's."""

    def __init__(self, me: int, out: list[Instruction], dead: Set[int]) -> None:
        self._me = me
        self._out = out
        self._dead = dead
        self._values: dict[RRefId, Shared] = {}
        self._tombstones: set[RRefId | ForkId] = set()

    def share(self, rref_id: RRefId, fork_id: ForkId, holder: int) -> None:
        """The owner itself passes the value on, or makes it by `remote` to itself."""
        shared = self._values.get(rref_id)
        if shared is None:
            shared = self._values[rref_id] = Shared()
        shared.state = move(VALUE_MOVES, shared.state, ValueEvent.CREATE)
        self._register(shared, fork_id, holder)

    def create(self, rref_id: RRefId, fork_id: ForkId, creator: int) -> None:
        """A creation by `remote` arrived. Raises `RRefError` where nobody can use it any more."""
        shared = self._values.get(rref_id)
        lost = shared is not None and shared.state is ValueState.LOST
        if lost or fork_id in self._tombstones or rref_id in self._tombstones:
            raise RRefError(f"the creation of {rref_id} arrived after its creator had given it up")
        self.share(rref_id, fork_id, creator)

    def request(self, rref_id: RRefId, fork_id: ForkId, holder: int) -> None:
        """FORK_REQUEST. A fork of a value that is gone is known too: its use reports the loss."""
        shared = self._values.get(rref_id)
        if move(FORK_MOVES, self._fork_state(shared, fork_id), ForkEvent.REGISTER) is ForkState.DELETED:
            return
        if shared is None:
            shared = self._ask_for(rref_id)
        shared.forks[fork_id] = holder

    def expect(self, rref_id: RRefId) -> ValueState:
        """Somebody asks for the value: its state now, never ABSENT."""
        shared = self._values.get(rref_id)
        if shared is None:
            shared = self._ask_for(rref_id)
            state = shared.state
            self._drop_if_unused(rref_id, shared)
            return state
        shared.state = move(VALUE_MOVES, shared.state, ValueEvent.EXPECT)
        return shared.state

    def delete(self, rref_id: RRefId, fork_id: ForkId, holder: int, in_doubt: bool) -> None:
        """USER_DELETE, or the owner takes back a fork of its own."""
        shared = self._values.get(rref_id)
        before = self._fork_state(shared, fork_id)
        move(FORK_MOVES, before, ForkEvent.DELETE)
        if in_doubt and before is not ForkState.DELETED:
            self._bury(fork_id)
        if before is ForkState.KNOWN:
            assert shared is not None
            del shared.forks[fork_id]
            self._drop_if_unused(rref_id, shared)
        elif before is ForkState.UNKNOWN and in_doubt and holder == rref_id.worker:
            self._creator_gave_up(rref_id, shared)

    def expire(self, rref_id: RRefId) -> None:
        shared = self._values.get(rref_id)
        if shared is not None and shared.state is ValueState.EXPECTED:
            self._give_up(rref_id, shared, "nothing has created it")

    def forget(self, dead_id: RRefId | ForkId) -> None:
        move(FORK_MOVES, ForkState.DELETED, ForkEvent.FORGET)
        self._tombstones.discard(dead_id)

    def creator_died(self, worker: int) -> None:
        """What it was still to create will never be."""
        for rref_id, shared in list(self._values.items()):
            if shared.state is ValueState.EXPECTED and rref_id.worker == worker:
                self._give_up(rref_id, shared, "the worker that was to create it died")

    def reclaim(self, worker: int) -> None:
        """Delete every fork that a dead worker holds."""
        for rref_id, shared in list(self._values.items()):
            held = [fork_id for fork_id, holder in shared.forks.items() if holder == worker]
            for fork_id in held:
                move(FORK_MOVES, ForkState.KNOWN, ForkEvent.DELETE)
                del shared.forks[fork_id]
            if held:
                self._drop_if_unused(rref_id, shared)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, rref_id: RRefId) -> bool:
        return rref_id in self._values

    def forks(self) -> dict[RRefId, dict[ForkId, int]]:
        """The known forks of each value, and who holds them."""
        return {rref_id: dict(shared.forks) for rref_id, shared in self._values.items()}

    def tombstones(self) -> int:
        return len(self._tombstones)

    def _fork_state(self, shared: Shared | None, fork_id: ForkId) -> ForkState:
        if shared is not None and fork_id in shared.forks:
            return ForkState.KNOWN
        return ForkState.DELETED if fork_id in self._tombstones else ForkState.UNKNOWN

    def _register(self, shared: Shared, fork_id: ForkId, holder: int) -> None:
        if move(FORK_MOVES, self._fork_state(shared, fork_id), ForkEvent.REGISTER) is ForkState.KNOWN:
            shared.forks[fork_id] = holder

    def _ask_for(self, rref_id: RRefId) -> Shared:
        """An entry for a value that is not in the table: not yet, or no longer."""
        shared = self._values[rref_id] = Shared()
        creator = rref_id.worker
        if creator == self._me or creator in self._dead or rref_id in self._tombstones:
            shared.state = move(VALUE_MOVES, shared.state, ValueEvent.GIVE_UP)
        else:
            shared.state = move(VALUE_MOVES, shared.state, ValueEvent.EXPECT)
            self._out.append(Later(MESSAGE_LIFETIME, Expire(rref_id)))
        return shared

    def _creator_gave_up(self, rref_id: RRefId, shared: Shared | None) -> None:
        """Its own fork was deleted before the creation arrived."""
        if shared is None or shared.state is ValueState.EXPECTED:
            self._bury(rref_id)
        if shared is not None and shared.state is ValueState.EXPECTED:
            self._give_up(rref_id, shared, "its creation failed")

    def _give_up(self, rref_id: RRefId, shared: Shared, reason: str) -> None:
        shared.state = move(VALUE_MOVES, shared.state, ValueEvent.GIVE_UP)
        self._out.append(Lose(rref_id, reason))
        self._drop_if_unused(rref_id, shared)

    def _drop_if_unused(self, rref_id: RRefId, shared: Shared) -> None:
        if not shared.forks and shared.state is not ValueState.EXPECTED:
            shared.state = move(VALUE_MOVES, shared.state, ValueEvent.DROP)
            del self._values[rref_id]
            self._out.append(Drop(rref_id))

    def _bury(self, dead_id: RRefId | ForkId) -> None:
        self._tombstones.add(dead_id)
        self._out.append(Later(MESSAGE_LIFETIME, Forget(dead_id)))
