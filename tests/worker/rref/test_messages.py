from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.rref.ids import ForkId, RRefId
from rpcgroup.rref.messages import Item, decode_fetch, decode_items, encode_fetch, encode_items

number = st.integers(0, 2**63 - 1)
items = st.lists(
    st.builds(Item, st.builds(RRefId, number, number), st.builds(ForkId, number, number), st.booleans())
)


@given(items)
def test_what_is_said_of_forks_arrives(said: list[Item]) -> None:
    assert decode_items(encode_items(said)) == said


@given(number, number)
def test_a_fetch_arrives(worker: int, local: int) -> None:
    assert decode_fetch(encode_fetch(RRefId(worker, local))) == RRefId(worker, local)


def test_a_truncated_payload_is_refused() -> None:
    payload = encode_items([Item(RRefId(1, 2), ForkId(3, 4))])
    with pytest.raises(RemoteProtocolError):
        decode_items(payload[:-1])
    with pytest.raises(RemoteProtocolError):
        decode_fetch(payload)
