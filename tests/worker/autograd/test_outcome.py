from __future__ import annotations

from rpcgroup.autograd.outcome import Outcome


def test_it_ends_once_when_all_is_back() -> None:
    ends: list[int] = []
    outcome = Outcome(lambda: ends.append(1))
    outcome.give_back([1, 2])
    assert not ends
    outcome.give_back([2])
    outcome.give_back([2])
    outcome.fail(RuntimeError())
    assert ends == [1] and outcome.error is None


def test_a_report_counts_once() -> None:
    outcome = Outcome(lambda: None)
    assert [outcome.is_repeated(report) for report in (1, 2, 1)] == [False, False, True]


def test_the_first_error_ends_it() -> None:
    ends: list[int] = []
    outcome = Outcome(lambda: ends.append(1))
    first = RuntimeError("first")
    outcome.fail(first)
    outcome.fail(RuntimeError("second"))
    outcome.give_back([0])
    assert ends == [1] and outcome.error is first
