from __future__ import annotations

import enum
from typing import Any

import pytest

from rpcgroup.errors import LocalProtocolError
from rpcgroup.rref.transitions import (
    FORK_MOVES,
    USER_MOVES,
    VALUE_MOVES,
    ForkEvent,
    ForkState,
    UserEvent,
    UserState,
    ValueEvent,
    ValueState,
    move,
)

LIFECYCLES: list[tuple[Any, type[enum.Enum], type[enum.Enum]]] = [
    (FORK_MOVES, ForkState, ForkEvent),
    (VALUE_MOVES, ValueState, ValueEvent),
    (USER_MOVES, UserState, UserEvent),
]


@pytest.mark.parametrize(("table", "states", "events"), LIFECYCLES)
def test_every_state_has_a_row_and_every_event_is_used(
    table: Any, states: type[enum.Enum], events: type[enum.Enum]
) -> None:
    assert set(table) == set(states)
    assert {event for row in table.values() for event in row} == set(events)


@pytest.mark.parametrize(
    ("table", "state", "event"),
    [(t, state, event) for t, states, events in LIFECYCLES for state in states for event in events],
)
def test_a_move_is_in_the_table_or_raises(table: Any, state: enum.Enum, event: enum.Enum) -> None:
    if event in table[state]:
        assert move(table, state, event) is table[state][event]
    else:
        with pytest.raises(LocalProtocolError, match=f"{state.name} has no {event.name}"):
            move(table, state, event)


def test_a_deleted_fork_comes_back_by_no_message() -> None:
    assert FORK_MOVES[ForkState.DELETED][ForkEvent.REGISTER] is ForkState.DELETED


def test_a_user_is_deleted_only_where_its_owner_knows_it_or_cannot_be_told() -> None:
    assert UserEvent.RELEASE not in USER_MOVES[UserState.PENDING]
    into_deleted = {state for state, row in USER_MOVES.items() if UserState.DELETED in row.values()}
    assert into_deleted == {UserState.DELETING, UserState.ORPHANED}
