from __future__ import annotations

import pytest

from rpcgroup.control.lifecycle import (
    ALIVE,
    FINISHED,
    TRANSITIONS,
    IllegalTransition,
    PodEvent,
    PodState,
    advance,
)


def test_every_state_has_a_row_and_every_move_ends_in_a_state() -> None:
    assert set(TRANSITIONS) == set(PodState)
    for state, row in TRANSITIONS.items():
        for event in PodEvent:
            if event in row:
                assert advance(state, event) is row[event]
            else:
                with pytest.raises(IllegalTransition, match=event.value):
                    advance(state, event)


def test_a_ready_pod_cannot_be_deleted_undrained() -> None:
    assert PodEvent.DELETE not in TRANSITIONS[PodState.READY]


def test_every_pod_can_go_and_goes_only_through_termination() -> None:
    for state in PodState:
        assert PodState.GONE in reachable(state)
        if state is not PodState.TERMINATING:
            assert PodState.GONE not in TRANSITIONS[state].values()


def test_alive_and_finished_do_not_overlap() -> None:
    assert not ALIVE & FINISHED
    assert ALIVE | FINISHED | {PodState.GONE} == set(PodState)


def reachable(state: PodState) -> set[PodState]:
    seen = {state}
    frontier = [state]
    while frontier:
        new = set(TRANSITIONS[frontier.pop()].values()) - seen
        seen |= new
        frontier += new
    return seen
