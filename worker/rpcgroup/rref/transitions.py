"""The lifecycles of the fork protocol, each one table; a move that is not in its table raises.

Torch's notes on RRefs describe the owner's view of a fork (unknown, known, deleted) and leave lost, repeated
and late messages to do. Here they are rows of the table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, TypeVar

from rpcgroup.errors import LocalProtocolError

__all__ = [
    "FORK_MOVES",
    "USER_MOVES",
    "VALUE_MOVES",
    "ForkEvent",
    "ForkState",
    "UserEvent",
    "UserState",
    "ValueEvent",
    "ValueState",
    "move",
]


class ForkState(enum.Enum):
    """A fork as its owner sees it."""

    UNKNOWN = "unknown"
    KNOWN = "known"
    DELETED = "deleted"


class ForkEvent(enum.Enum):
    REGISTER = "register"
    """The owner passed it on, or a creation or a FORK_REQUEST names it."""
    DELETE = "delete"
    """USER_DELETE, or its holder's death, or the message that carried it could not be sent."""
    FORGET = "forget"
    """No message that registers it can be under way any more."""


FORK_MOVES: Final = {
    ForkState.UNKNOWN: {
        ForkEvent.REGISTER: ForkState.KNOWN,
        ForkEvent.DELETE: ForkState.DELETED,  # overtook the message that registers it
    },
    ForkState.KNOWN: {
        ForkEvent.REGISTER: ForkState.KNOWN,  # sent again
        ForkEvent.DELETE: ForkState.DELETED,
    },
    ForkState.DELETED: {
        ForkEvent.REGISTER: ForkState.DELETED,  # late
        ForkEvent.DELETE: ForkState.DELETED,  # sent again
        ForkEvent.FORGET: ForkState.UNKNOWN,
    },
}


class ValueState(enum.Enum):
    """A shared value on its owner."""

    ABSENT = "absent"
    EXPECTED = "expected"
    """Asked for before the message that creates it has arrived."""
    PRESENT = "present"
    """Created; its function may still be running."""
    LOST = "lost"
    """It will never exist, or exists no more; somebody still refers to it."""


class ValueEvent(enum.Enum):
    CREATE = "create"
    EXPECT = "expect"
    GIVE_UP = "give up"
    """Its creator died or deleted its own fork, or no creation can be under way any more."""
    DROP = "drop"
    """Its last user is gone."""


VALUE_MOVES: Final = {
    ValueState.ABSENT: {
        ValueEvent.CREATE: ValueState.PRESENT,
        ValueEvent.EXPECT: ValueState.EXPECTED,
        ValueEvent.GIVE_UP: ValueState.LOST,
    },
    ValueState.EXPECTED: {
        ValueEvent.CREATE: ValueState.PRESENT,
        ValueEvent.EXPECT: ValueState.EXPECTED,
        ValueEvent.GIVE_UP: ValueState.LOST,
    },
    ValueState.PRESENT: {
        ValueEvent.CREATE: ValueState.PRESENT,  # shared again, or sent again
        ValueEvent.EXPECT: ValueState.PRESENT,
        ValueEvent.DROP: ValueState.ABSENT,
    },
    ValueState.LOST: {
        ValueEvent.CREATE: ValueState.LOST,  # too late: its users have been told
        ValueEvent.EXPECT: ValueState.LOST,
        ValueEvent.DROP: ValueState.ABSENT,
    },
}


class UserState(enum.Enum):
    """A fork as its user sees it."""

    PENDING = "pending"
    """The owner may not know it yet: it is kept, whatever the program does."""
    CONFIRMED = "confirmed"
    FAILED = "failed"
    """`remote` failed, or the owner refused it: every use raises. The owner may know it all the same."""
    ORPHANED = "orphaned"
    """The owner died: every use raises."""
    DELETING = "deleting"
    """USER_DELETE is sent until the owner answers or is declared dead."""
    DELETED = "deleted"


class UserEvent(enum.Enum):
    CONFIRM = "confirm"
    """The owner has answered the creation or the FORK_REQUEST."""
    FAIL = "fail"
    RELEASE = "release"
    """Nothing here needs it any more: neither the program nor a child that the owner does not know yet."""
    ACKNOWLEDGE = "acknowledge"
    OWNER_DIED = "owner died"


USER_MOVES: Final = {
    UserState.PENDING: {
        UserEvent.CONFIRM: UserState.CONFIRMED,
        UserEvent.FAIL: UserState.FAILED,
        UserEvent.OWNER_DIED: UserState.ORPHANED,
    },
    UserState.CONFIRMED: {
        UserEvent.CONFIRM: UserState.CONFIRMED,
        UserEvent.RELEASE: UserState.DELETING,
        UserEvent.OWNER_DIED: UserState.ORPHANED,
    },
    UserState.FAILED: {
        UserEvent.RELEASE: UserState.DELETING,
        UserEvent.OWNER_DIED: UserState.ORPHANED,
    },
    UserState.ORPHANED: {
        UserEvent.CONFIRM: UserState.ORPHANED,  # an answer that was under way when the owner died
        UserEvent.FAIL: UserState.ORPHANED,
        UserEvent.OWNER_DIED: UserState.ORPHANED,  # it was my predecessor, and now its death is known
        UserEvent.RELEASE: UserState.DELETED,
    },
    UserState.DELETING: {
        UserEvent.ACKNOWLEDGE: UserState.DELETED,
        UserEvent.OWNER_DIED: UserState.DELETED,
    },
    UserState.DELETED: {},
}

State = TypeVar("State", bound=enum.Enum)
Event = TypeVar("Event", bound=enum.Enum)


def move(table: Mapping[State, Mapping[Event, State]], state: State, event: Event) -> State:
    """The state after `event`. Raises `LocalProtocolError` where the table has no such move."""
    try:
        return table[state][event]
    except KeyError:
        raise LocalProtocolError(f"{type(state).__name__}.{state.name} has no {event.name}") from None
