from __future__ import annotations

import threading

import pytest

from rpcgroup.compat.rpc.gathering import Gatherings, wait_for

NAMES = {"a", "b"}


@pytest.fixture
def gatherings() -> Gatherings:
    return Gatherings()


def test_it_is_over_when_all_have_given(gatherings: Gatherings) -> None:
    sequence_id, state = gatherings.begin(NAMES)
    gatherings.give(sequence_id, "a", 1, NAMES)
    assert not state.proceed_signal.is_set()
    assert gatherings.missing(state, NAMES) == ["b"]
    gatherings.give(sequence_id, "b", 2, NAMES)
    assert state.proceed_signal.is_set()
    assert state.gathered_objects == {"a": 1, "b": 2}
    gatherings.end(sequence_id)
    assert len(gatherings) == 0


def test_a_part_may_come_before_its_gathering_has_begun_here(gatherings: Gatherings) -> None:
    gatherings.give("ab0", "b", 2, NAMES)
    assert gatherings.begin(["b", "a"])[1].gathered_objects == {"b": 2}


def test_every_gathering_of_the_same_workers_has_an_id_of_its_own(gatherings: Gatherings) -> None:
    ids = [gatherings.begin(names)[0] for names in (NAMES, NAMES, {"a", "c"}, NAMES)]
    assert ids == ["ab0", "ab1", "ac0", "ab2"]


def test_nobody_gives_twice_and_no_stranger_gives(gatherings: Gatherings) -> None:
    gatherings.give("ab0", "a", 1, NAMES)
    with pytest.raises(AssertionError, match="a reported intent sequence id ab0 twice"):
        gatherings.give("ab0", "a", 3, NAMES)
    with pytest.raises(AssertionError, match="c is not expected by leader"):
        gatherings.give("ab0", "c", 3, NAMES)
    assert gatherings.begin(NAMES)[1].gathered_objects == {"a": 1}


def test_the_leader_tells_once(gatherings: Gatherings) -> None:
    gatherings.take("ab0", {"a": 1, "b": 2})
    with pytest.raises(AssertionError, match="got set twice"):
        gatherings.take("ab0", {})
    _, state = gatherings.begin(NAMES)
    assert state.proceed_signal.is_set()
    assert gatherings.missing(state, NAMES) == []


def test_the_wait_ends_in_time() -> None:
    signal = threading.Event()
    assert not wait_for(signal, 0.01, lambda: ["b"], None)
    signal.set()
    assert wait_for(signal, None, lambda: ["b"], None)
