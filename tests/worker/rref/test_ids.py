from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpcgroup.errors import RemoteProtocolError
from rpcgroup.rref.ids import ForkData, ForkId, RRefId

number = st.integers(0, 2**63 - 1)


@given(
    number, st.text(), st.builds(RRefId, number, number), st.builds(ForkId, number, number), number, st.text()
)
def test_what_travels_arrives(
    owner: int, owner_name: str, rref_id: RRefId, fork_id: ForkId, parent: int, type_name: str
) -> None:
    fork = ForkData(owner, owner_name, rref_id, fork_id, parent, type_name)
    received = ForkData.from_wire(pickle.loads(pickle.dumps(fork.to_wire())))
    assert received == fork
    assert type(received.rref_id) is RRefId and type(received.fork_id) is ForkId


@pytest.mark.parametrize(
    "data", [(), (1, "a", 1, 1, 1, 1, 1), (1, 2, 1, 1, 1, 1, 1, ""), (1, "a", "1", 1, 1, 1, 1, ""), None, 7]
)
def test_what_is_no_reference_is_refused(data: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="not a reference"):
        ForkData.from_wire(data)
