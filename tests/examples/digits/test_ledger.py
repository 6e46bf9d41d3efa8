from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from examples.digits.ledger import Ledger


def filled(numbers: list[int]) -> Ledger:
    ledger = Ledger()
    for number in numbers:
        ledger.enter("t", "life", number // 4, number)
    return ledger


def test_everything_arrived() -> None:
    ledger = filled([0, 1, 2, 3, 4])
    ledger.close("t", "life", 5)
    assert (ledger.arrived, ledger.lost, ledger.repeated) == (5, 0, 0)
    assert ledger.accounts["life"].epochs == {0: 4, 1: 1}


def test_a_gap_is_a_loss_even_of_a_killed_trainer() -> None:
    assert filled([0, 1, 3]).lost == 1


def test_the_last_call_of_a_killed_trainer_is_none() -> None:
    assert filled([0, 1]).lost == 0


def test_a_trainer_that_sent_more_than_arrived_lost_it() -> None:
    ledger = filled([0, 1])
    ledger.close("t", "life", 3)
    assert ledger.lost == 1


def test_a_gradient_that_comes_twice_is_counted_apart() -> None:
    ledger = filled([0, 1, 1])
    assert (ledger.arrived, ledger.repeated) == (2, 1)


def test_a_new_life_starts_to_count_anew() -> None:
    ledger = filled([0, 1])
    ledger.enter("t", "second life", 0, 0)
    assert (ledger.arrived, ledger.lost, ledger.repeated) == (3, 0, 0)


@given(st.integers(0, 40), st.sets(st.integers(0, 39)))
def test_what_did_not_arrive_is_what_is_lost(sent: int, dropped: set[int]) -> None:
    ledger = filled([n for n in range(sent) if n not in dropped])
    ledger.close("t", "life", sent)
    assert ledger.lost == len(dropped & set(range(sent)))
