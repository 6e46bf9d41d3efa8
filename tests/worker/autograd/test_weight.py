from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.autograd.weight import WHOLE, Total, share

WEIGHTS = st.lists(st.integers(0, 200), min_size=1, max_size=5)


def total(weights: list[int]) -> Fraction:
    return sum((Fraction(1, 2**weight) for weight in weights), Fraction(0))


@given(WEIGHTS, st.integers(0, 20))
def test_nothing_is_lost_in_sharing(weights: list[int], parts: int) -> None:
    shares, left = share(weights, parts)
    assert len(shares) == parts
    assert total(shares + left) == total(weights)


@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_the_whole_is_back_with_the_last_part_and_not_before(random: object, steps: int) -> None:
    """Whatever way it took: some of it is given back, some is sent on, some comes together again."""
    under_way, back = [WHOLE], Total()
    for _ in range(steps):
        if not under_way:
            break
        assert not back.is_whole
        count = random.randint(1, min(3, len(under_way)))  # type: ignore[attr-defined]
        arrived, under_way = under_way[:count], under_way[count:]
        shares, left = share(arrived, random.randint(0, 4))  # type: ignore[attr-defined]
        under_way += shares
        for weight in left:
            back.add(weight)
    for weight in under_way:
        assert not back.is_whole
        back.add(weight)
    assert back.is_whole


@pytest.mark.parametrize("order", [(1, 3, 2, 3), (3, 3, 2, 1)])
def test_parts_of_any_size_in_any_order(order: tuple[int, ...]) -> None:
    sum_ = Total()
    for weight in order:
        assert not sum_.is_whole
        sum_.add(weight)
    assert sum_.is_whole
